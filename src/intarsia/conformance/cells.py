"""The cells that the laws of adapters are tried on: small, at a rectangular site."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Card, Cell, Site
from .cards import tiny

INPUTS, OUTPUTS = 6, 10
BATCH, TOKENS = 4, 3
DRAWS = 40  # forwards after which no expert of a tiny mixture is still unseen


def site(card: Card, *, square: bool = False) -> Site:
    """A site with a LayerNorm that feeds it, in the position that the method wants."""
    position = tiny(card).position
    where = Site("block.mlp", INPUTS, INPUTS if square else OUTPUTS, position)
    weight = torch.linspace(0.5, 1.5, where.reads)
    return Site(
        where.path, where.inputs, where.outputs, position, norm=(weight, weight.flip(0) - 1)
    )


def build(card: Card, seed: int = 0) -> Cell:
    """A cell with the card's tiny settings, as it is before training."""
    return tiny(card).build(site(card), generator=torch.Generator().manual_seed(seed))


def trained(card: Card, seed: int = 0) -> Cell:
    """A cell whose every parameter has moved: what starts at zero hides what comes before it."""
    cell = build(card, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.5)
    return cell


def inputs(card: Card, *shape: int, seed: int = 2) -> Tensor:
    """Normal features (..., what the cell reads)."""
    shape = (*(shape or (BATCH, TOKENS)), site(card).reads)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
