"""Weights that are masked by learned scores: the largest are kept (HYDRA, DASS).

m = the top k of |s| in each layer, the layer computes with w m, and the mask passes its gradient
straight through to |s|: dL/ds = dL/d(w m) w sign(s) (arXiv:2207.06968, section 3;
arXiv:2002.10509).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..core import Partition
from .masked import masked_weights


class _Mask(torch.autograd.Function):
    """1 at the largest |s|, 0 elsewhere; of equal ones the first."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(scores)
        return mask_of(scores, count).to(scores)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # straight through: |s| gets the mask's gradient, and s its sign
        (scores,) = ctx.saved_tensors
        return grads[0] * scores.sign(), None


def mask_of(scores: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` largest |s|, bool; of equal ones the first."""
    # the mask is chosen by size, without regard to sign
    size = scores.detach().abs().flatten()
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    least = size.kthvalue(len(size) - count + 1).values  # of those that are kept
    # equal scores at the threshold: the first ones fill the rest of `count`
    larger, equal = size > least, size == least
    mask = larger | (equal & (equal.cumsum(0) <= count - larger.sum()))
    return mask.view_as(scores)


class Scored(nn.Module):
    """w -> w m, a parametrization of a weight.  s starts at sqrt(6 / fan_in) w / max |w|."""

    def __init__(self, weight: Tensor, density: float) -> None:
        super().__init__()
        largest = float(weight.detach().abs().max()) or 1.0
        # as in HYDRA, scores start proportional to the weights, at the scale of a fresh layer
        start = math.sqrt(6 / weight[0].numel()) * weight.detach() / largest
        self.scores, self.count = nn.Parameter(start), round(density * weight.numel())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * _Mask.apply(self.scores, self.count)


def put_scores(
    model: nn.Module, density: float, layers: Sequence[str] | None = None, *, alone: bool = False
) -> list[str]:
    """Give linear maps and convolutions trained scores, in place; return the layers' paths.

    Each weight is then multiplied by the mask of its largest scores. density: the share of each
    weight that its scores keep; layers: globs, see `masked_weights`; alone: freeze everything but
    the scores.
    """
    paths = [name.removesuffix(".weight") for name in masked_weights(model, layers)]
    # everything but the scores stays as it is
    if alone:
        model.requires_grad_(False)
    for path in paths:
        layer: Any = model.get_submodule(path)
        # torch then computes w m at each use of the weight
        parametrize.register_parametrization(layer, "weight", Scored(layer.weight, density))
    return paths


def take_scores(model: nn.Module, paths: Sequence[str]) -> Partition:
    """Replace each weight by its masked value, remove the scores, and return the masks.

    paths: of the layers, as returned by `put_scores`. The weights are then trained again.
    """
    masks: dict[str, Tensor] = {}
    for path in paths:
        layer: Any = model.get_submodule(path)
        scored: Any = layer.parametrizations.weight[0]
        masks[f"{path}.weight"] = mask_of(scored.scores, scored.count).cpu()
        # the parametrised weight w m becomes the plain weight
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        layer.weight.requires_grad_(True)
    return Partition.from_masks(masks)
