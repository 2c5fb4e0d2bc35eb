"""Policies of a cache of experts: by recency, by counts, by a profile, by the expected next use.

Layers are asked for in a circle. When one step asks for more experts than there are slots, LRU
holds exactly what was just used and hits nothing; LFU keeps what is used often, and `Expected`
knows the circle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..core import Card, Paper
from ..core.checks import between
from .cache import Key, Policy


class _Recency(Policy):
    def __init__(self, layers: int, experts: int) -> None:
        super().__init__(layers, experts)
        self.last = dict[Key, int]()

    def used(self, key: Key, hit: bool) -> None:
        super().used(key, hit)
        self.last[key] = self.takes

    def victim(self, resident: Iterable[Key]) -> Key:
        return min(resident, key=lambda key: (self.last.get(key, 0), key))


@dataclass(frozen=True)
class Lru:
    """The expert goes that was used longest ago.

    Not for fewer slots than a step asks for, as with several streams: it then hits nothing.
    Source: arXiv:2312.17238, section 3.1.
    """

    def build(self, layers: int, experts: int) -> Policy:
        return _Recency(layers, experts)


class _Counts(_Recency):
    def __init__(self, layers: int, experts: int, settings: Lfu) -> None:
        super().__init__(layers, experts)
        self.settings = settings
        self.uses: dict[Key, float] = {}

    def began(self) -> None:
        super().began()
        if self.steps % self.settings.every == 0:
            self.uses = {key: uses * self.settings.decay for key, uses in self.uses.items()}

    def used(self, key: Key, hit: bool) -> None:
        super().used(key, hit)
        forgotten = self.settings.reset and not hit
        self.uses[key] = 1.0 if forgotten else self.uses.get(key, 0.0) + 1

    def victim(self, resident: Iterable[Key]) -> Key:
        return min(resident, key=lambda key: (self.uses.get(key, 0.0), self.last.get(key, 0), key))


@dataclass(frozen=True)
class Lfu:
    """The expert goes that was used least often, by counters that are decayed.

    every: K, steps after which counters are multiplied by decay: beta. Among equals the one that
    was used longest ago goes.
    reset: count from 1 again when an expert is read in, in place of keeping its counter while it is
    out. A newcomer is then nearly always the next to go, and the hit rate falls below that of
    `Lru`; the paper does not say which of the two it means.

    Raises: ConfigError for settings that cannot be.
    Not where what was used recently says more than what was used often: see `Lru`.
    Source: arXiv:2205.10034 (SE-MoE), which has counters and their decay; the numbers K = 100 and
    beta = 0.5 are ours.
    """

    every: int = 100
    decay: float = 0.5
    reset: bool = False

    def __post_init__(self) -> None:
        between("every", self.every, 1, math.inf)
        between("decay", self.decay, 0, 1)

    def build(self, layers: int, experts: int) -> Policy:
        return _Counts(layers, experts, self)


class NextUse(Policy):
    """The expert goes whose next use is expected latest: `away` + L (1 / p - 1) layers from now."""

    def __init__(self, layers: int, experts: int, decay: float) -> None:
        super().__init__(layers, experts)
        self.decay = decay
        self.sum: dict[Key, tuple[float, int]] = {}  # decayed steps that asked, as of a step
        self.known: dict[Key, float] = {}  # `expected`, until the next layer asks

    def foresee(self, chances: Tensor | None) -> None:
        super().foresee(chances)
        self.known.clear()

    def began(self) -> None:
        super().began()
        self.known.clear()

    def asked(self, layer: int, experts: Sequence[int]) -> None:
        super().asked(layer, experts)
        for expert in experts:
            key = layer, expert
            self.sum[key] = self._now(key) + 1.0, self.steps
        self.known.clear()

    def _now(self, key: Key) -> float:
        total, step = self.sum.get(key, (0.0, self.steps))
        return total * self.decay ** (self.steps - step)

    def chance(self, key: Key) -> float:
        """p: the decayed share of the steps that asked for it."""
        whole = (1 - self.decay**self.steps) / (1 - self.decay) if self.decay < 1 else self.steps
        return min(1.0, self._now(key) / max(whole, 1.0))

    def expected(self, key: Key) -> float:
        """Layers until the next use."""
        p = max(self.chance(key), 1e-9)
        return self.away(key) + self.layers * (1 / p - 1)

    def victim(self, resident: Iterable[Key]) -> Key:
        known, found = self.known, list[tuple[float, Key]]()
        for key in resident:
            if (value := known.get(key)) is None:
                value = known[key] = self.expected(key)
            found.append((value, key))
        return max(found)[1]


@dataclass(frozen=True)
class Expected:
    """The expert goes whose next use is expected latest: layers until its layer comes
    + L (1 / p - 1), p the share of steps that asked for it, decayed.

    decay: of that share, for each step. An expert whose own next use is latest passes through.

    Raises: ConfigError for a decay outside 0.5 ... 1.
    Not of a paper; beside ExpertFlow's caches, whose prediction is of the step at hand.
    """

    decay: float = 0.98

    def __post_init__(self) -> None:
        between("decay", self.decay, 0.5, 1)

    def build(self, layers: int, experts: int) -> Policy:
        return NextUse(layers, experts, self.decay)


class Belady(Policy):
    """The expert goes whose next use is latest, known from all steps: the fewest loads there are.

    A bound for other policies from the same contents, on recorded steps alone.
    """

    def __init__(self, layers: int, experts: int, demand: Sequence[Sequence[Key]]) -> None:
        super().__init__(layers, experts)
        self.uses: dict[Key, list[int]] = {}
        for number, key in enumerate(key for step in demand for key in step):
            self.uses.setdefault(key, []).append(number)
        for numbers in self.uses.values():
            numbers.reverse()

    def used(self, key: Key, hit: bool) -> None:
        super().used(key, hit)
        self.uses[key].pop()

    def victim(self, resident: Iterable[Key]) -> Key:
        def next_use(key: Key) -> float:
            left = self.uses.get(key)
            return left[-1] if left else math.inf

        return max(resident, key=lambda key: (next_use(key), key))


OFFLOADING = "Fast Inference of Mixture-of-Experts Language Models with Offloading"
SE_MOE = (
    "SE-MoE: A Scalable and Efficient Mixture-of-Experts Distributed Training and Inference System"
)
FLOW = (
    "ExpertFlow: Optimized Expert Activation and Token Allocation for Efficient Mixture-of-Experts "
    "Inference"
)

CARDS = (
    Card(
        "lru",
        kind="cache",
        config=Lru,
        paper=Paper("2312.17238", 2023, OFFLOADING),
        summary="The expert that was used longest ago gives its slot.",
        family="caches of experts",
    ),
    Card(
        "lfu",
        kind="cache",
        config=Lfu,
        paper=Paper("2205.10034", 2022, SE_MOE),
        summary="The expert that was used least often, by decayed counters, gives its slot.",
        family="caches of experts",
    ),
    Card(
        "expected",
        kind="cache",
        config=Expected,
        paper=Paper("2410.17954", 2024, FLOW),
        summary="The expert whose next use is expected latest gives its slot.",
        family="caches of experts",
    ),
)
