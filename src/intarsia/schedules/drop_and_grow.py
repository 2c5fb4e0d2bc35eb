"""The step of dynamic sparse training: drop the smallest weights, grow as many others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Partition
from ..core.checks import at_least, between
from ..core.schema import setting
from ..partitions import erdos_renyi, random_masks, uniform
from ..partitions.topk import keep_top
from .fixed_mask import FixedMask
from .mask_settings import MaskSettings
from .masked import Masks, Weights

SPREADS = {"uniform": uniform, "erdos-renyi": erdos_renyi}


@torch.no_grad()
def grow(
    weight: Tensor,
    mask: Tensor,
    drop: float,
    grow_score: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Set the smallest kept weights to not kept, and keep as many others instead; return the mask.

    weight: of any shape; mask: bool, True = kept, n of them; drop: share of the n that are
      exchanged; grow_score: the others with the largest are kept, None = random ones; generator:
      source of that draw. Of equal ones the earlier entry is kept. A weight that was just dropped
      may be chosen again.
    Raises: ConfigError for a share outside 0 ... 1, a NaN, or neither score nor generator.
    """
    between("drop", drop, 0, 1, "Try 0.3.")
    count = int(mask.sum())
    # no more can be exchanged than there are places outside the mask
    exchanged = min(round(drop * count), mask.numel() - count)
    if grow_score is None:
        at_least("generator", 0 if generator is None else 1, 1, "Pass a torch.Generator.")
        grow_score = torch.rand(weight.shape, generator=generator)
    # step 1: drop the smallest |w| of the mask
    # -1 is below every size, so that only kept weights stay
    size = weight.detach().abs().masked_fill(~mask, -1)
    stays = keep_top({"": size}, count - exchanged).mask("", 0).to(mask.device)
    # step 2: grow the largest scores outside what stays
    free = grow_score.detach().to(mask.device).float().masked_fill(stays, -math.inf)
    return stays | keep_top({"": free}, exchanged).mask("", 0).to(mask.device)


@dataclass(frozen=True)
class DropAndGrow(MaskSettings):
    """The common part of RigL and SET: sparse from the start, and as sparse to the end.

    Raises: ConfigError on settings that cannot be; at the start for density=None without a zero.
    """

    density: float | None = setting(
        0.25,
        "The share of all the layers' weights that is kept; None = a sparse model's own masks, "
        "and as many in each layer to the end.",
        above=0,
        most=1,
        fix="Try 0.25.",
    )
    drop: float = setting(
        0.3,
        "The share of a layer's weights that is exchanged at first; it falls along half a cosine.",
        least=0,
        most=1,
        fix="Try 0.3.",
    )
    every: int = setting(100, "The steps between two changes of the masks.", least=1)
    stop: float = setting(
        0.75,
        "The share of the steps after which the masks are fixed.",
        least=0,
        most=1,
        fix="Try 0.75.",
    )
    spread: str = setting(
        "erdos-renyi",
        'The way in which the density is spread over the layers: "erdos-renyi", or "uniform", '
        "the same in each.",
        choices=tuple(SPREADS),
    )

    def begin(self, weights: Weights, generator: torch.Generator) -> Partition:
        """Return the masks at the start: random, or the model's zeros without a `density`."""
        if self.density is None:
            return FixedMask().begin(weights, generator)
        shapes = {name: tuple(w.shape) for name, w in weights.items()}
        # a density for each layer, so that all together have the setting's
        densities = SPREADS[self.spread](shapes, self.density)
        return random_masks(shapes, densities, generator=generator)

    def due(self, step: int, steps: int) -> bool:
        """Return True if the masks change at this step: every `every` steps until stop * steps."""
        return self.density != 1 and 0 < step < self.stop * steps and step % self.every == 0

    def share(self, step: int, steps: int) -> float:
        """Return the share of the kept weights to exchange, drop / 2 (1 + cos(pi t / T_end)).

        step: t, counted from 0; steps: number in the whole training; T_end = stop * steps.
        """
        return self.drop / 2 * (1 + math.cos(math.pi * step / (self.stop * steps)))

    def update(
        self,
        weights: Weights,
        masks: Masks,
        gradients: Mapping[str, Tensor],
        progress: tuple[int, int],
        generator: torch.Generator,
    ) -> Masks:
        """Exchange the smallest kept weights of each layer for others; return the new masks."""
        # the same share in every layer
        share = self.share(*progress)
        return {
            n: grow(w, masks[n], share, self.grow_score(w, gradients.get(n)), generator)
            for n, w in weights.items()
        }

    def grow_score(self, weight: Tensor, grad: Tensor | None) -> Tensor | None:
        """Return None: weights grow at random. Subclasses return scores of the weight's shape.

        weight, grad: unused here.
        """
        return None
