"""Gradual magnitude pruning along a training (Zhu and Gupta, arXiv:1710.01878)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Card, Paper
from ..core.checks import between, one_of
from ..core.schema import check, setting
from ..partitions import erdos_renyi, keep_row_blocks, keep_shares, uniform
from ..partitions.topk import keep_top
from .mask_settings import MaskSettings
from .masked import Masks, Weights

SPREADS = ("uniform", "erdos-renyi", "global")


def cubic(time: float, first: float, last: float) -> float:
    """Return the sparsity s_t = s_f + (s_i - s_f) (1 - t)^3, which rises fast at first (eq. 1).

    time: t, clamped to 0 ... 1; first: s_i, the sparsity at t = 0; last: s_f, at t = 1.
    """
    return last + (first - last) * (1 - min(1.0, max(0.0, time))) ** 3


@dataclass(frozen=True)
class Gradual(MaskSettings):
    """The smallest weights are set to 0, little by little; a weight of 0 stays 0.

    The sparsity between start and stop rises by s_t = s_f + (s_i - s_f)(1 - t)^3.

    Not where the first steps must be cheap: they are dense, unless `start` says otherwise.
    Raises: ConfigError on settings that cannot be.
    """

    density: float = setting(
        0.25, "The share of the weights that is kept at the end.", above=0, most=1, fix="Try 0.25."
    )
    start: float = setting(0.0, "The share of the steps after which pruning begins.", least=0)
    stop: float = setting(
        0.6,
        "The share of the steps after which pruning ends, at least `start`.",
        most=1,
        fix="Try 0.6.",
    )
    every: int = setting(10, "The steps between two changes of the masks.", least=1)
    spread: str = setting(
        "uniform",
        'The way in which the density is spread over the layers: "uniform", every layer has it; '
        '"erdos-renyi"; "global", the smallest weights of all.',
        choices=SPREADS,
    )
    rows: int = setting(
        1,
        "The outputs that are 0 together at an input, with their whole kernels, see "
        "`keep_row_blocks`; the density then counts blocks. More than 1 is not for "
        'spread="global".',
        least=1,
    )

    def __post_init__(self) -> None:
        """Check each setting, and those that depend on another.  Raises: ConfigError."""
        check(self)
        between("stop", self.stop, self.start, 1, "Try 0.6.")
        # blocks of rows are chosen inside each layer, so that "global" is not for them
        one_of("spread", self.spread, SPREADS if self.rows == 1 else SPREADS[:2])

    def due(self, step: int, steps: int) -> bool:
        """Return True at every `every`-th step between start and stop, and at the stop."""
        first, last = self._first_and_last(steps)
        return first <= step <= last and ((step - first) % self.every == 0 or step == last)

    def _first_and_last(self, steps: int) -> tuple[int, int]:
        """Return the first and the last step that prune; a short training may have only one."""
        last = min(round(self.stop * steps), steps - 1)
        # the start is never after the stop
        return min(round(self.start * steps), last), last

    def density_at(self, step: int, steps: int) -> float:
        """Return the share of weights that is kept after a step's pruning.

        step: counted from 0; steps: number in the whole training.
        """
        first, last = self._first_and_last(steps)
        # sparsity is 1 - density; it begins at 0
        return 1 - cubic(
            (step - first) / max(1, last - first) if last > first else 1.0, 0.0, 1 - self.density
        )

    def update(
        self,
        weights: Weights,
        masks: Masks,
        gradients: Mapping[str, Tensor],
        progress: tuple[int, int],
        generator: torch.Generator,
    ) -> Masks:
        """Return the masks of the weights that stay: the largest of those that are still kept."""
        density = self.density_at(*progress)
        # a weight that is 0 already competes last, so that zeros stay zeros
        scores = {n: w.detach().abs().masked_fill(~masks[n], -1) for n, w in weights.items()}
        shapes = {name: tuple(w.shape) for name, w in weights.items()}
        if self.spread == "global":
            total = sum(w.numel() for w in weights.values())
            largest = keep_top(scores, round(density * total))
        else:
            spread = uniform if self.spread == "uniform" else erdos_renyi
            shares = spread(shapes, density)
            if self.rows > 1:
                # a block is scored by all of its weights, also those that are 0 already
                sizes = {name: w.detach().abs() for name, w in weights.items()}
                largest = keep_row_blocks(sizes, shares, self.rows)
            else:
                largest = keep_shares(scores, shares)
        # never a weight that was pruned before
        return {n: largest.mask(n, 0).to(masks[n].device) & masks[n] for n in masks}


CARD = Card(
    "gradual",
    kind="schedule",
    config=Gradual,
    paper=Paper(
        "1710.01878",
        2017,
        "To prune, or not to prune: exploring the efficacy of pruning for model compression",
    ),
    tiny={"density": 0.5, "every": 2},
    summary="The smallest weights become 0 little by little, most of them early.",
    family="sparse training",
    names=("GMP", "gradual magnitude pruning"),
)
