"""Which experts stand in the slots of a fast memory: asks and decides, and never reads.

A slot goes from empty to filled to empty again when another expert takes it; an expert in use is
pinned and keeps its slot. Whoever asks does the reading.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..core.checks import at_least
from ..core.errors import ConfigError

Key = tuple[int, int]  # layer, expert


class Policy(abc.ABC):
    """Who goes when a slot is needed. Layers are asked for in a circle, one step after another."""

    def __init__(self, layers: int, experts: int) -> None:
        self.layers, self.experts, self.layer = layers, experts, 0
        self.steps = self.takes = 0
        self.chances: Tensor | None = None

    def foresee(self, chances: Tensor | None) -> None:
        """What is foreseen of the step that begins next: (L, E) chances; None: nothing is.

        Raises: ConfigError for other sizes.
        """
        if chances is not None and tuple(chances.shape) != (self.layers, self.experts):
            got, want = f"chances {tuple(chances.shape)}", f"({self.layers}, {self.experts})"
            fix = "Make the predictor from a trace of this model."
            raise ConfigError("predictor", got=got, want=want, fix=fix)
        self.chances = chances

    def coming(self) -> Sequence[Key]:
        """What later layers of this step are foreseen to ask for, the next layer's first."""
        return ()

    def began(self) -> None:
        """A new step (a forward of the model) begins."""
        self.steps += 1

    def asked(self, layer: int, experts: Sequence[int]) -> None:
        """A layer of this step asks for these experts."""
        self.layer = layer

    def used(self, key: Key, hit: bool) -> None:
        """An expert is about to be computed, or was brought in for that."""
        self.takes += 1

    @abc.abstractmethod
    def victim(self, resident: Iterable[Key]) -> Key:
        """The one of these, at least one, that goes."""

    def away(self, key: Key) -> int:
        """Layers until an expert's layer comes again; a whole round for this layer's own."""
        return (key[0] - self.layer - 1) % self.layers + 1


class PolicyConfig(Protocol):
    """Settings of a policy (kind "cache")."""

    def build(self, layers: int, experts: int) -> Policy: ...


@dataclass(frozen=True)
class Taken:
    """The slot of an expert; load: it has to be read into it; out: who was there."""

    slot: int
    load: bool
    out: Key | None = None


class Cache:
    """`slots` places for experts of all layers, with a policy.

    Call `begin` before each step and `ask` before each layer's experts are taken one by one.
    hits + loads = takes; never more than `slots` are in; what is pinned stays.

    Raises: ConfigError for fewer than two slots, or more pins than slots.
    """

    def __init__(self, slots: int, policy: Policy) -> None:
        at_least("slots", slots, 2, "One is computed while another comes in: give 2 or more.")
        self.slots, self.policy = slots, policy
        self.at: dict[Key, int] = {}
        self.pinned: dict[Key, int] = {}
        self.free = list(range(slots))[::-1]
        self.hits = self.loads = self.ahead = 0
        self.wanted: set[Key] = set()

    def begin(self) -> None:
        """A new step."""
        self.policy.began()

    def ask(self, layer: int, experts: Sequence[int]) -> None:
        """What a layer is about to take, each once; those still wanted go last."""
        self.wanted = {(layer, expert) for expert in experts}
        self.policy.asked(layer, experts)

    def take(self, key: Key) -> Taken:
        """The expert's slot, pinned until `give`."""
        self.wanted.discard(key)
        if key in self.at:
            self.hits += 1
            self._pin(key)
            self.policy.used(key, True)
            return Taken(self.at[key], load=False)
        out = None if self.free else self._evict()
        self.at[key] = slot = self.free.pop()
        self.loads += 1
        self._pin(key)
        self.policy.used(key, False)
        return Taken(slot, True, out)

    def bring(self, key: Key) -> Taken | None:
        """A slot for an expert that a later layer may ask for, pinned until `give`.

        None if it is in, or all others are expected sooner.
        """
        if key in self.at:
            return None
        out = None
        if not self.free:
            loose = [k for k in self.at if k not in self.pinned and k not in self.wanted]
            out = self.policy.victim([*loose, key])
            if out == key:
                return None
            self.free.append(self.at.pop(out))
        self.at[key] = slot = self.free.pop()
        self.ahead += 1
        self._pin(key)
        return Taken(slot, True, out)

    def give(self, key: Key) -> None:
        """An expert that was taken is not in use any more."""
        left = self.pinned[key] - 1
        if left:
            self.pinned[key] = left
        else:
            del self.pinned[key]

    def drop(self, key: Key) -> None:
        """Forget an expert that could not be read."""
        self.pinned.pop(key, None)
        self.free.append(self.at.pop(key))

    def fill(self, keys: Iterable[Key]) -> None:
        """Start with these in: not counted."""
        for key in keys:
            if key not in self.at and self.free:
                self.at[key] = self.free.pop()

    def _pin(self, key: Key) -> None:
        self.pinned[key] = self.pinned.get(key, 0) + 1

    def _evict(self) -> Key:
        loose = [key for key in self.at if key not in self.pinned]
        if not loose:
            got, fix = f"{len(self.pinned)} experts in use at once", "Give more slots."
            raise ConfigError("slots", got=got, want=f"at most {self.slots}", fix=fix)
        unwanted = [key for key in loose if key not in self.wanted]
        out = self.policy.victim(unwanted or loose)
        self.free.append(self.at.pop(out))
        return out


@dataclass(frozen=True)
class Residency:
    """How experts were found: hits in the slots, and loads, of so many bytes, in so many seconds.

    seconds: in which the products waited for a read; ahead: reads of what was foreseen, before it
    was asked for. bytes: of both.
    """

    hits: int = 0
    loads: int = 0
    bytes: int = 0
    seconds: float = 0.0
    ahead: int = 0

    @property
    def asks(self) -> int:
        return self.hits + self.loads

    @property
    def rate(self) -> float:
        """Hits among asks; 0 for none."""
        return self.hits / self.asks if self.asks else 0.0


def replay(
    demand: Sequence[Sequence[Key]],
    policy: Policy,
    slots: int,
    *,
    start: Iterable[Key] = (),
    expert_bytes: int = 0,
    foreseen: Sequence[Tensor] = (),
) -> Residency:
    """What a cache would have done with these steps, each a list of (layer, expert) in order.

    demand: see `describe.demand`.  start: what is in at first.  foreseen: the chances of each step,
    see `expertflow.foreseen`.
    """
    cache = Cache(slots, policy)
    cache.fill(start)
    for number, step in enumerate(demand):
        policy.foresee(foreseen[number] if foreseen else None)
        cache.begin()
        for layer, experts in by_layer(step).items():
            cache.ask(layer, experts)
            for expert in experts:
                cache.take((layer, expert))
                cache.give((layer, expert))
    return Residency(cache.hits, cache.loads, cache.loads * expert_bytes)


def by_layer(step: Iterable[Key]) -> Mapping[int, list[int]]:
    """A step's experts of each layer, in order."""
    found: dict[int, list[int]] = {}
    for layer, expert in step:
        found.setdefault(layer, []).append(expert)
    return found


def most_used(demand: Iterable[Iterable[Key]], slots: int) -> list[Key]:
    """Those that most steps asked for: what a cache is warm with."""
    counts: dict[Key, int] = {}
    for step in demand:
        for key in step:
            counts[key] = counts.get(key, 0) + 1
    return sorted(counts, key=lambda key: (-counts[key], key))[:slots]
