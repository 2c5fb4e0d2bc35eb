"""RigL: drop the smallest weights, grow the ones of largest gradients (arXiv:1911.11134)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core import Card, Paper
from ..scores import gradient
from .drop_and_grow import DropAndGrow


@dataclass(frozen=True)
class RigL(DropAndGrow):
    """Sparse from random masks, which every so many steps follow the dense gradient.

    Every `every` steps until `stop`, instead of the optimiser's step: in each layer the smallest
    |w| of a share f(t) = drop / 2 (1 + cos(pi t / T_end)) of the kept weights go, and as many with
    the largest |g| of the dense gradient come, at 0 (algorithm 1).
    Source: paper, section 3. Not for fine-tuning a pretrained model: it starts from random masks,
    which drop most of what the model knows; prune it instead.
    """

    reads_gradients = True

    def grow_score(self, weight: Tensor, grad: Tensor | None) -> Tensor | None:
        """Return |g| of the whole gradient, by which weights grow; None for random growth."""
        return None if grad is None else gradient(weight, grad)


CARD = Card(
    "rigl",
    kind="schedule",
    config=RigL,
    paper=Paper("1911.11134", 2019, "Rigging the Lottery: Making All Tickets Winners"),
    tiny={"density": 0.5, "every": 2},
    summary="Sparse training: the smallest weights go, those with the largest gradients come.",
    family="sparse training",
)
