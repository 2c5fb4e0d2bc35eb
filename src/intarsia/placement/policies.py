"""Eviction policies for caches of experts: by recency, by counts, by the expected next use.

Layers ask in a circle. When one step uses more experts than there are slots, LRU keeps exactly the
experts just used and has no hits; LFU keeps those used often, and `Expected` knows the circle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..core import Card, Paper
from ..core.schema import check, setting
from .cache import Key, Policy


class _LeastRecent(Policy):
    """Policy that evicts the expert used longest ago.  last: the time of each expert's last use."""

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
    """Cache policy LRU: the expert used longest ago is evicted.

    Not for fewer slots than a step uses, as with several streams: it then has no hits.
    Source: arXiv:2312.17238, section 3.1.
    """

    def build(self, layers: int, experts: int) -> Policy:
        return _LeastRecent(layers, experts)


class _LeastFrequent(_LeastRecent):
    """Policy that evicts the expert of the lowest decayed counter, then the least recent."""

    def __init__(self, layers: int, experts: int, settings: Lfu) -> None:
        super().__init__(layers, experts)
        self.settings = settings
        self.uses: dict[Key, float] = {}

    def began(self) -> None:
        """Begin a step; after every K of them the counters decay."""
        super().began()
        if self.steps % self.settings.every == 0:
            self.uses = {key: uses * self.settings.decay for key, uses in self.uses.items()}

    def used(self, key: Key, hit: bool) -> None:
        """Count a use of an expert.  key: (layer, expert)."""
        super().used(key, hit)
        # with `reset` a miss starts the counter again
        forgotten = self.settings.reset and not hit
        self.uses[key] = 1.0 if forgotten else self.uses.get(key, 0.0) + 1

    def victim(self, resident: Iterable[Key]) -> Key:
        return min(resident, key=lambda key: (self.uses.get(key, 0.0), self.last.get(key, 0), key))


@dataclass(frozen=True)
class Lfu:
    """Cache policy LFU: the expert used least often, by decayed counters, is evicted.

    Among equal counters the expert used longest ago is evicted.

    Raises: ConfigError for every below 1, or a decay outside 0 ... 1.
    Not where recent uses say more than frequent ones: see `Lru`.
    Source: arXiv:2205.10034 (SE-MoE), which has counters and their decay; the numbers K = 100 and
    beta = 0.5 are ours.
    """

    every: int = setting(100, "The steps K after which the counters decay.", least=1)
    decay: float = setting(
        0.5, "The factor beta by which the counters are multiplied then.", least=0, most=1
    )
    reset: bool = setting(
        False,
        "Start an expert's counter at 1 again when it is read in, instead of keeping it while "
        "the expert is out; a newcomer is then nearly always the next victim, and the hit rate "
        "falls below `Lru`'s. The paper does not say which of the two it means.",
    )

    def __post_init__(self) -> None:
        check(self)

    def build(self, layers: int, experts: int) -> Policy:
        return _LeastFrequent(layers, experts, self)


class NextUse(Policy):
    """Policy that evicts the expert expected latest: in `away` + L (1 / p - 1) layers."""

    def __init__(self, layers: int, experts: int, decay: float) -> None:
        super().__init__(layers, experts)
        self.decay = decay
        # (decayed number of steps that used the expert, the step for which it is valid)
        self.sum: dict[Key, tuple[float, int]] = {}
        self.cached: dict[Key, float] = {}  # values of `expected`, until the next layer asks

    def foresee(self, chances: Tensor | None) -> None:
        super().foresee(chances)
        self.cached.clear()

    def began(self) -> None:
        super().began()
        self.cached.clear()

    def asked(self, layer: int, experts: Sequence[int]) -> None:
        """Count a use of each of these experts, which a layer of this step is about to compute."""
        super().asked(layer, experts)
        for expert in experts:
            key = layer, expert
            self.sum[key] = self._decayed(key) + 1.0, self.steps
        self.cached.clear()

    def _decayed(self, key: Key) -> float:
        """Return how many steps used an expert, older steps counted less.  key: (layer, expert)."""
        total, step = self.sum.get(key, (0.0, self.steps))
        return total * self.decay ** (self.steps - step)

    def chance(self, key: Key) -> float:
        """Return p, the share of steps that used an expert, older ones counted less."""
        # the decayed number of all steps, a geometric series
        all_steps = (
            (1 - self.decay**self.steps) / (1 - self.decay) if self.decay < 1 else self.steps
        )
        return min(1.0, self._decayed(key) / max(all_steps, 1.0))

    def expected(self, key: Key) -> float:
        """Return the expected number of layers that are computed until an expert's next use.

        It is away + L (1 / p - 1): away, the layers until the expert's own layer is next; L, layers
        of the model; p, the share of steps that use the expert. key: (layer, expert).
        """
        p = max(self.chance(key), 1e-9)
        return self.away(key) + self.layers * (1 / p - 1)

    def victim(self, resident: Iterable[Key]) -> Key:
        """Return the expert to evict, of those in slots: the one expected to be used latest."""
        cached, candidates = self.cached, list[tuple[float, Key]]()
        # `expected` is costly and is asked for often: keep its values until the next layer asks
        for key in resident:
            if (value := cached.get(key)) is None:
                value = cached[key] = self.expected(key)
            candidates.append((value, key))
        return max(candidates)[1]


@dataclass(frozen=True)
class Expected:
    """Cache policy that evicts the expert expected to be used latest.

    Its use is expected in the layers until its layer comes + L (1 / p - 1) layers, p the decayed
    share of steps that used it.

    Not where the present step can be foretold: `Predictive` does it.
    Raises: ConfigError for a decay outside 0.5 ... 1.
    Not from a paper; a companion of ExpertFlow's caches, which predict for the present step.
    """

    decay: float = setting(
        0.98, "The factor of an expert's share of uses p for each step.", least=0.5, most=1
    )

    def __post_init__(self) -> None:
        check(self)

    def build(self, layers: int, experts: int) -> Policy:
        return NextUse(layers, experts, self.decay)


class Belady(Policy):
    """Policy that evicts the expert with the latest next use, known from all steps (Belady).

    No policy has fewer loads from the same start. It needs recorded steps.
    demand: the (layer, expert) of each step, in order.
    """

    def __init__(self, layers: int, experts: int, demand: Sequence[Sequence[Key]]) -> None:
        super().__init__(layers, experts)
        self.uses: dict[Key, list[int]] = {}
        for number, key in enumerate(key for step in demand for key in step):
            self.uses.setdefault(key, []).append(number)
        # reversed, so that the next use is the last entry, which `used` pops
        for numbers in self.uses.values():
            numbers.reverse()

    def used(self, key: Key, hit: bool) -> None:
        super().used(key, hit)
        self.uses[key].pop()

    def victim(self, resident: Iterable[Key]) -> Key:
        """Return the expert to evict, of those in slots: the one with the latest next use."""

        def next_use(key: Key) -> float:
            uses = self.uses.get(key)
            return uses[-1] if uses else math.inf

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
        summary="The expert with the latest expected next use gives its slot.",
        family="caches of experts",
    ),
)
