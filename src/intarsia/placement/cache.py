"""Cache of experts in the slots of a fast memory: decides which expert is where, reads no data.

An expert that is not in a slot takes a free one, or evicts the expert that the policy names; an
expert in use is pinned and keeps its slot. The caller reads the weights.
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
    """Eviction policy: chooses the expert that gives up its slot.

    Layers ask in a circle, one step (a forward of the model) after another.
    layers: L, experts: E in each layer;  layer: the one that asked last;  steps, takes: counts of
    steps begun and experts used;  chances: (L, E) prediction for the present step, or None.
    """

    def __init__(self, layers: int, experts: int) -> None:
        """Begin at step 0, without a prediction.  layers: L; experts: E in each layer."""
        self.layers, self.experts, self.layer = layers, experts, 0
        self.steps = self.takes = 0
        self.chances: Tensor | None = None

    def foresee(self, chances: Tensor | None) -> None:
        """Accept a prediction for the next step.

        chances: (L, E), the probability that each expert is used; None = no prediction.
        Raises: ConfigError for chances of another shape.
        """
        if chances is not None and tuple(chances.shape) != (self.layers, self.experts):
            got, want = f"chances {tuple(chances.shape)}", f"({self.layers}, {self.experts})"
            fix = "Make the predictor from a trace of this model."
            raise ConfigError("predictor", got=got, want=want, fix=fix)
        self.chances = chances

    def coming(self) -> Sequence[Key]:
        """Return the experts predicted for later layers of this step, the next layer's first."""
        return ()

    def began(self) -> None:
        """Note that a new step begins."""
        self.steps += 1

    def asked(self, layer: int, experts: Sequence[int]) -> None:
        """Note that a layer of this step is about to use these experts."""
        self.layer = layer

    def used(self, key: Key, hit: bool) -> None:
        """Note the use of an expert; hit: it was in a slot."""
        self.takes += 1

    @abc.abstractmethod
    def victim(self, resident: Iterable[Key]) -> Key:
        """Return the expert to evict among `resident`, which has at least one."""

    def away(self, key: Key) -> int:
        """Return how many layers are computed until an expert's own layer is next, 1 ... L.

        key: (layer, expert). Layers are computed in a circle, step after step; for the present
        layer's own experts it is L.
        """
        return (key[0] - self.layer - 1) % self.layers + 1


class PolicyConfig(Protocol):
    """Settings that build an eviction policy (kind "cache")."""

    def build(self, layers: int, experts: int) -> Policy: ...


@dataclass(frozen=True)
class SlotGrant:
    """Slot of an expert.  load: it must be read into the slot; out: the expert that was evicted."""

    slot: int
    load: bool
    out: Key | None = None


class Cache:
    """Cache with `slots` places for experts of all layers, and an eviction policy.

    Call `begin` before each step and `ask` before each layer's experts are taken one by one.
    hits + loads = takes; at most `slots` experts are resident; a pinned expert is never evicted.
    at: the slot of each resident expert;  pinned: uses in progress of each;  ahead: reads before
    their layer asked;  wanted: experts that the present layer has still to take.

    Raises: ConfigError for fewer than two slots, or more pins than slots.
    """

    def __init__(self, slots: int, policy: Policy) -> None:
        at_least("slots", slots, 2, "One is computed while another comes in: give 2 or more.")
        self.slots, self.policy = slots, policy
        self.at: dict[Key, int] = {}
        self.pinned: dict[Key, int] = {}
        # reversed, so that slot 0 is popped first
        self.free = list(range(slots))[::-1]
        self.hits = self.loads = self.ahead = 0
        self.wanted: set[Key] = set()

    def begin(self) -> None:
        """Begin a new step."""
        self.policy.began()

    def ask(self, layer: int, experts: Sequence[int]) -> None:
        """Announce the experts that a layer will take, each once; they are evicted last."""
        self.wanted = {(layer, expert) for expert in experts}
        self.policy.asked(layer, experts)

    def take(self, key: Key) -> SlotGrant:
        """Return the slot of an expert that is used now; evict another expert if none is free.

        key: (layer, expert). The expert is pinned: it stays until `give` is called. The result says
          if the caller must read the weights into the slot.
        Raises: ConfigError if all slots are in use.
        """
        self.wanted.discard(key)
        if key in self.at:
            self.hits += 1
            self._pin(key)
            self.policy.used(key, True)
            return SlotGrant(self.at[key], load=False)
        out = None if self.free else self._evict()
        self.at[key] = slot = self.free.pop()
        self.loads += 1
        self._pin(key)
        self.policy.used(key, False)
        return SlotGrant(slot, True, out)

    def bring(self, key: Key) -> SlotGrant | None:
        """Return a slot to read an expert into before its layer asks for it, or None.

        key: (layer, expert), pinned until `give` is called. None if it is in a slot already, or if
          the policy would evict this expert first.
        """
        if key in self.at:
            return None
        out = None
        if not self.free:
            loose = [k for k in self.at if k not in self.pinned and k not in self.wanted]
            # the newcomer competes, too: it must not push out an expert that is needed sooner
            out = self.policy.victim([*loose, key])
            # the newcomer itself is the victim: do not read it now
            if out == key:
                return None
            self.free.append(self.at.pop(out))
        self.at[key] = slot = self.free.pop()
        self.ahead += 1
        self._pin(key)
        return SlotGrant(slot, True, out)

    def give(self, key: Key) -> None:
        """End one use of an expert; without any use it may be evicted.  key: (layer, expert)."""
        remaining = self.pinned[key] - 1
        if remaining:
            self.pinned[key] = remaining
        else:
            del self.pinned[key]

    def drop(self, key: Key) -> None:
        """Remove an expert after a failed read of its weights, and free its slot."""
        self.pinned.pop(key, None)
        self.free.append(self.at.pop(key))

    def fill(self, keys: Iterable[Key]) -> None:
        """Put experts into free slots at the start; they count neither as hits nor as loads.

        keys: (layer, expert); those beyond the free slots are ignored.
        """
        for key in keys:
            if key not in self.at and self.free:
                self.at[key] = self.free.pop()

    def _pin(self, key: Key) -> None:  # nested: the same expert may be in use twice
        self.pinned[key] = self.pinned.get(key, 0) + 1

    def _evict(self) -> Key:
        """Evict the expert, (layer, expert), that the policy chooses among those not in use."""
        loose = [key for key in self.at if key not in self.pinned]
        if not loose:
            got, fix = f"{len(self.pinned)} experts in use at once", "Give more slots."
            raise ConfigError("slots", got=got, want=f"at most {self.slots}", fix=fix)
        # the present layer's experts that are still to come are evicted only if nothing else is
        # left
        unwanted = [key for key in loose if key not in self.wanted]
        out = self.policy.victim(unwanted or loose)
        self.free.append(self.at.pop(out))
        return out


@dataclass(frozen=True)
class Residency:
    """Counts of a cache.  hits: uses of a resident expert;  loads: reads after a layer asked.

    ahead: reads of predicted experts before their layer asked;  bytes: of loads and reads ahead;
    seconds: time that the products waited for a read.
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
        """Hit rate: hits over hits and loads; 0 without uses."""
        return self.hits / self.asks if self.asks else 0.0


def replay(
    demand: Sequence[Sequence[Key]],
    policy: Policy | PolicyConfig,
    slots: int,
    *,
    start: Iterable[Key] = (),
    expert_bytes: int = 0,
    foreseen: Sequence[Tensor] = (),
) -> Residency:
    """Simulate a cache of experts on recorded steps and return its hits, loads and bytes.

    demand: for each step the (layer, expert) pairs in order, see `describe.demand`. policy: chooses
      the expert that is evicted, or its settings, as Lru(). slots: of the cache. start: experts in
      slots at first. expert_bytes: size of one expert. foreseen: predicted chances (L, E) of each
      step, see `expertflow.predicted_steps`; empty = no prediction.
    """
    if not isinstance(policy, Policy):
        pairs = [pair for step in demand for pair in step]
        layers, experts = (max((pair[i] for pair in pairs), default=0) + 1 for i in (0, 1))
        policy = policy.build(layers, experts)
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
    """Group the (layer, expert) pairs of a step by layer: layer -> experts, in their order."""
    experts_of: dict[int, list[int]] = {}
    for layer, expert in step:
        experts_of.setdefault(layer, []).append(expert)
    return experts_of


def most_used(demand: Iterable[Iterable[Key]], slots: int) -> list[Key]:
    """Return the experts that most steps used, to fill a cache before the first step.

    demand: for each step the (layer, expert) that it uses.
    """
    counts: dict[Key, int] = {}
    for step in demand:
        for key in step:
            counts[key] = counts.get(key, 0) + 1
    return sorted(counts, key=lambda key: (-counts[key], key))[:slots]
