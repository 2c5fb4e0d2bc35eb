"""How routers share their rows out: shares, entropy, variation, and a word when one expert wins."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from .router import learned_routers

COLLAPSED = 0.9  # the share of one expert above which the others learn nothing


class CollapseWarning(UserWarning):
    """A router sends nearly everything to one expert."""


@dataclass(frozen=True)
class Load:
    """The share of each expert, (E,), which add up to 1.

    Of (row, expert) pairs where a row has some of the experts, of weight where it has all.
    """

    share: tuple[float, ...]

    @property
    def variation(self) -> float:
        """Standard deviation over mean of the shares: 0 = even, sqrt(E - 1) = one has all."""
        count = len(self.share)
        return math.sqrt(sum((s - 1 / count) ** 2 for s in self.share) / count) * count

    @property
    def entropy(self) -> float:
        """Of the shares, over its largest value log E: 1 = even, 0 = one has all."""
        if len(self.share) == 1:
            return 1.0
        return -sum(s * math.log(s) for s in self.share if s > 0) / math.log(len(self.share))

    @property
    def collapsed(self) -> bool:
        """Whether one of several experts has nearly all."""
        return len(self.share) > 1 and max(self.share) > COLLAPSED


def loads(model: nn.Module) -> dict[str, Load]:
    """Of each learned router, by path, since `forget`; routers that have seen nothing are left out.

    Counted while training, or inside `counting`: `received` of `Router`.
    """
    found = {name: _share(router.received) for name, router in learned_routers(model).items()}
    return {name: Load(share) for name, share in found.items() if share is not None}


def _share(received: Tensor) -> tuple[float, ...] | None:
    pairs, weight = received
    if not bool(pairs.any()):
        return None
    # where every expert has every row, only weights tell them apart
    counted = weight if bool((pairs == pairs[0]).all()) and bool(weight.any()) else pairs
    return tuple((counted / counted.sum()).tolist())


def forget(model: nn.Module) -> None:
    """Let every learned router count its load anew."""
    for router in learned_routers(model).values():
        router.forget()


@contextmanager
def counting(model: nn.Module) -> Iterator[None]:
    """Inside, learned routers count in every mode, from zero; then as before.

    `loads(model)`, or `received` of each router, is to be read inside.
    """
    routers = learned_routers(model).values()
    before = [(router.counting, router.received) for router in routers]
    for router in routers:
        router.counting = True
        router.forget()
    try:
        yield
    finally:
        for router, (on, received) in zip(routers, before, strict=True):
            router.counting, router.received = on, received


def summary(found: Mapping[str, Load]) -> dict[str, float]:
    """Means over routers, for a curve."""
    if not found:
        return {}
    count = len(found)
    return {
        "load_variation": sum(load.variation for load in found.values()) / count,
        "load_entropy": sum(load.entropy for load in found.values()) / count,
    }


def warn_of_collapse(found: Mapping[str, Load]) -> bool:
    """Warn, with the remedy, where one expert has more than nine tenths; says whether it did."""
    gone = [name for name, load in found.items() if load.collapsed]
    if gone:
        share = max(max(found[name].share) for name in gone)
        warnings.warn(
            f"{len(gone)} of {len(found)} routers send up to {share:.0%} to one expert (first: "
            f"{gone[0]}). Raise the method's balance loss, lower the learning rate, or use fewer "
            "experts.",
            CollapseWarning,
            stacklevel=2,
        )
    return bool(gone)
