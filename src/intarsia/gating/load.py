"""The load of the experts of a router: shares, entropy, variation, and a warning of collapse."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from .context import having
from .router import learned_routers

COLLAPSED = 0.9  # when as many experts as a row has get this share, the others do not learn


class CollapseWarning(UserWarning):
    """A router sends nearly everything to the same few experts."""


@dataclass(frozen=True)
class Load:
    """The share of each expert, (E,), which add up to 1.

    Of (row, expert) pairs where a row has some of the experts, of weight where it has all.
    active: pairs of a row, on average; 1 where weights are counted.
    """

    share: tuple[float, ...]
    active: float = 1.0

    @property
    def variation(self) -> float:
        """The shares' standard deviation over their mean: 0 = even, sqrt(E - 1) = one has all."""
        count = len(self.share)
        return math.sqrt(sum((s - 1 / count) ** 2 for s in self.share) / count) * count

    @property
    def entropy(self) -> float:
        """The entropy of the shares over its maximum log E: 1 = even, 0 = one expert has all."""
        if len(self.share) == 1:
            return 1.0
        # the logarithm of E is the entropy of even shares
        return -sum(s * math.log(s) for s in self.share if s > 0) / math.log(len(self.share))

    @property
    def collapsed(self) -> bool:
        """True if the k busiest experts get over 90 %, where a token has k of more than k."""
        # the other experts get too little to learn
        k = max(1, round(self.active))
        return len(self.share) > k and sum(sorted(self.share)[-k:]) > COLLAPSED


def loads(model: nn.Module) -> dict[str, Load]:
    """Return the load (shares of the experts) of each learned router of a model, by its path.

    Tokens are counted in training, or inside `counting`, since the last `forget`. Routers that have
    counted none are left out.
    """
    by_path = {n: _load(r.received, r.served) for n, r in learned_routers(model).items()}
    return {name: load for name, load in by_path.items() if load is not None}


def _load(received: Tensor, served: int) -> Load | None:
    """Return the load of a router's experts, as shares; None if nothing was counted."""
    # (E,) each: an expert's tokens, and the sum of their weights; tokens say nothing where every
    # expert has every row: count the weights instead
    # received: (2, E); served: the number of tokens that had any expert
    pairs, weight = received
    if not bool(pairs.any()):
        return None

    weighed = served > 0 and bool((pairs == served).all()) and bool(weight.any())
    counted = weight if weighed else pairs
    active = 1.0 if weighed or not served else float(pairs.sum()) / served
    return Load(tuple((counted / counted.sum()).tolist()), active)


def forget(model: nn.Module) -> None:
    """Let every learned router count its load from 0 again."""
    for router in learned_routers(model).values():
        router.forget()


@contextmanager
def counting(model: nn.Module) -> Iterator[None]:
    """Count the load of a model's routers from zero inside the `with` block, in evaluation as well.

    Read `loads(model)`, or `received` of each router, inside the block: the counts from before are
    restored at its end.
    """
    routers = learned_routers(model).values()
    # forget() makes new tensors: the old ones can be put back as they are
    before = [(router.received, router.served) for router in routers]
    forget(model)
    try:
        with having(model, counting=True):
            yield
    finally:
        for router, (received, served) in zip(routers, before, strict=True):
            router.received, router.served = received, served


def summary(by_path: Mapping[str, Load]) -> dict[str, float]:
    """Return how evenly experts are used, averaged over all routers, for a training curve.

    by_path: path of a router -> its load (shares of its experts). Returns "load_variation", the
    shares' standard deviation over their mean, 0 = even; and "load_entropy", the entropy of the
    shares over its maximum, 1 = even. Without routers the result is empty.
    """
    if not by_path:
        return {}
    count = len(by_path)
    return {
        "load_variation": sum(load.variation for load in by_path.values()) / count,
        "load_entropy": sum(load.entropy for load in by_path.values()) / count,
    }


def warn_of_collapse(by_path: Mapping[str, Load]) -> bool:
    """Warn if a router's k busiest experts get over 90 % of its load; return True if one's do.

    by_path: path of a router -> its load (shares of its experts). k is the number of experts that a
    token has, rounded; with k experts or fewer in all there is no warning.
    """
    collapsed = [name for name, load in by_path.items() if load.collapsed]
    if collapsed:
        load = by_path[collapsed[0]]
        k = max(1, round(load.active))
        share = sum(sorted(load.share)[-k:])
        experts = "one expert" if k == 1 else f"the same {k} experts"
        # name the first router alone: usually all collapse for one reason
        message = (
            f"{len(collapsed)} of {len(by_path)} routers collapsed; the first, {collapsed[0]}, "
            f"sends {share:.0%} to {experts} of {len(load.share)}. Raise the method's balance "
            "loss, lower the learning rate, or use fewer experts."
        )
        warnings.warn(message, CollapseWarning, stacklevel=2)
    return bool(collapsed)
