"""Read-ME's experts: parts of one dense MLP, and a shared part (arXiv:2410.19123).

m_i: the units that text of domain i uses. residual = AND_i m_i, for every token; expert i has
m_i AND NOT residual. With expert i, the MLP is the dense one with all other units at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ShapeError
from ..gating.router import Router
from .mixture import Mixture


class SlicedMlp(nn.Module):
    """Some hidden units of an MLP: down act(up x), gated down (act(gate x) * up x).

    up, gate: (h, d), down: (d, h), act: the host's; units: (n,) int64, those that are kept.
    """

    def __init__(
        self,
        up: nn.Linear,
        gate: nn.Linear | None,
        down: nn.Linear,
        act: nn.Module,
        units: Tensor,
        *,
        bias: bool = False,
    ) -> None:
        """Copy the rows of up and gate, and the columns of down, of some hidden units."""
        super().__init__()
        self.up, self.act = _rows(up, units), act
        self.gate = None if gate is None else _rows(gate, units)
        self.down = _columns(down, units, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        return self.down(self.act(up) if self.gate is None else self.act(self.gate(x)) * up)


def _rows(layer: nn.Linear, units: Tensor) -> nn.Linear:
    """Return a copy of a linear layer that has some of its outputs only."""
    sliced = _empty(layer.in_features, len(units), bias=layer.bias is not None)
    sliced.weight = nn.Parameter(layer.weight.detach()[units].clone())
    # an output's bias goes with its row
    if layer.bias is not None:
        sliced.bias = nn.Parameter(layer.bias.detach()[units].clone())
    return sliced


def _columns(layer: nn.Linear, units: Tensor, *, bias: bool) -> nn.Linear:
    """Return a copy of a linear layer that reads some of its inputs only."""
    has_bias = bias and layer.bias is not None
    sliced = _empty(len(units), layer.out_features, bias=has_bias)
    sliced.weight = nn.Parameter(layer.weight.detach()[:, units].clone())
    if has_bias:
        sliced.bias = nn.Parameter(layer.bias.detach().clone())
    return sliced


def _empty(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    layer: Any = nn.utils.skip_init(nn.Linear, 1, 1, bias=bias)
    layer.in_features, layer.out_features = inputs, outputs
    return layer


def residual_of(masks: Tensor) -> Tensor:
    """Return the units that all experts have.  (E, h) bool -> (h,) bool."""
    return masks.all(0)


def read_me_mixture(
    up: nn.Linear,
    gate: nn.Linear | None,
    down: nn.Linear,
    act: nn.Module,
    masks: Tensor,
    router: Router,
) -> Mixture:
    """Build the mixture that takes the place of an MLP: a shared part and E slices of it.

    up, gate, down, act: linear maps and activation of the MLP, gate None if it has none; masks: (E,
      h) bool, True = a hidden unit that the expert has; router: chooses the experts of a token.
    Units that all experts have are the shared part, which every token passes; expert i has the rest
    of its units. So a token with expert i, of weight 1, gets the dense MLP's output with all units
    outside mask i at 0, to rounding. The bias of `down` is in the shared part.
    Raises: ShapeError for masks of other sizes.
    """
    if masks.dim() != 2 or masks.shape != (router.experts, down.in_features):
        want = f"({router.experts}, {down.in_features}), experts and hidden units"
        fix = "Make them by channel_masks of this model."
        raise ShapeError("masks", got=tuple(masks.shape), want=want, fix=fix)
    # units that all experts share are computed once, for every token
    shared = residual_of(masks)

    def part(mask: Tensor, *, bias: bool) -> SlicedMlp:
        return SlicedMlp(up, gate, down, act, mask.nonzero().flatten(), bias=bias)

    # The output bias is added once, by the shared part.
    experts: Sequence[nn.Module] = [part(mask & ~shared, bias=False) for mask in masks]
    return Mixture(experts, router, part(shared, bias=True))


def random_masks(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Draw random masks, a baseline for masks that were chosen by data.

    masks: (E, h) bool; a random mask has as many units as the mask in its row.  -> (E, h) bool.
    """
    drawn = torch.zeros_like(masks)
    for row, count in zip(drawn, masks.sum(1).tolist(), strict=True):
        # `row` is a view of the result
        row[torch.randperm(len(row), generator=generator)[:count]] = True
    return drawn
