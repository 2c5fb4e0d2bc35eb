"""Laws of a training in phases that prunes: as sparse as it says, no zero comes back, one seed."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ..core import Card, Partition
from ..fitting import PhasedRun, fit_in_phases
from ..schedules import masked_weights
from ..schedules.phases import Phase
from .cards import CARD_LAWS, tiny
from .made import normal, torch_seed
from .sparse_schedules import net
from .verdict import Law, laws_of, require

Kept = dict[str, Tensor]


class _Watched:
    """A method that records the zeros of the model whenever a phase begins."""

    def __init__(self, method: Any) -> None:
        self.method, self.seen = method, list[Kept]()

    def phases(self, model: nn.Module, *, seed: int = 0) -> Generator[Phase, None, Any]:
        """Run the method's phases on a model, and record before each which weights are not 0."""
        steps = self.method.phases(model, seed=seed)
        try:
            while True:
                phase = next(steps)
                self.seen.append(kept_of(model))
                yield phase
        except StopIteration as end:
            return end.value


def kept_of(model: nn.Module) -> Kept:
    """Return the masks of the weights that are not 0."""
    return {n: w.detach() != 0 for n, w in masked_weights(model, computed=True).items()}


def trained(method: Any) -> tuple[nn.Module, PhasedRun]:
    """Train a small net, dense at first, by a method's phases; return the net and the run."""
    model = net(sparse=False)
    rows = TensorDataset(normal(16, 2, 4, 4), torch.arange(16) % 3)
    run = fit_in_phases(model, method, rows, epochs=1, batch_size=8, lr=0.05, trackers=())
    return model, run


def _count(masks: Kept) -> int:
    return sum(int(k.sum()) for k in masks.values())


def ends_as_dense_as_it_says(card: Card) -> None:
    """Check that in the end the share `density` of the weights is not 0."""
    method = tiny(card)
    model, run = trained(method)
    masks = kept_of(model)
    total = sum(k.numel() for k in masks.values())
    got, want = f"{_count(masks)} of {total} kept", f"density {method.density}"
    require(abs(_count(masks) - method.density * total) <= 1, got, want, "Round once.")
    # a method may return more than the partition
    part = run.found if isinstance(run.found, Partition) else run.found.partition
    differ = [n for n, k in masks.items() if not torch.equal(part.mask(n, 0), k)]
    require(not differ, f"other masks of {differ}", "those of the model", "Return them.")


def never_fills_a_zero(card: Card) -> None:
    """Check that a weight that is 0 when a phase of the method begins stays 0."""
    watched = _Watched(tiny(card))
    model, _ = trained(watched)
    # the masks when a phase begins, and the final model's
    later = [*watched.seen[1:], kept_of(model)]
    for number, (before, after) in enumerate(zip(watched.seen, later, strict=True), 1):
        filled = sum(int((after[n] & ~k).sum()) for n, k in before.items())
        fix = "Train with FixedMask, and prune within the last masks."
        require(not filled, f"{filled} zeros filled in phase {number}", "none", fix)


def is_one_training_for_one_seed(card: Card) -> None:
    """Check that the method gives the same bits for one seed, whatever torch's generator does."""
    runs: list[dict[str, Tensor]] = []
    for seed in (3, 4):
        with torch_seed(seed):
            runs.append(trained(tiny(card))[0].state_dict())
    differ = [n for n, t in runs[0].items() if not torch.equal(t, runs[1][n])]
    require(not differ, f"other {differ}", "the same bits", "Draw from the seed.")


def prunes_nothing_at_density_1(card: Card) -> None:
    """Check that the method with density 1 makes no weight 0."""
    model, _ = trained(replace(tiny(card), density=1.0))
    zeros = sum(int((~k).sum()) for k in kept_of(model).values())
    require(not zeros, f"{zeros} weights pruned", "none", "Keep round(density n) of n.")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
