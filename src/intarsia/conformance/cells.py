"""The cells that the laws of adapters are tried on: small, at a rectangular site."""

from __future__ import annotations

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from ..core import Card, Cell, Site
from .cards import tiny
from .made import moved, normal, seeded, torch_seed

INPUTS, HIDDEN, OUTPUTS = 6, 7, 10
BATCH, TOKENS = 4, 3
DRAWS = 40  # forwards after which no expert of a tiny mixture is still unseen


def site(card: Card, *, square: bool = False) -> Site:
    """Describe the layer, as a `Site`, to which a method's adapter is added in the tests.

    A LayerNorm is in front of it. square: as many outputs as inputs.
    """
    position, outputs = tiny(card).position, INPUTS if square else OUTPUTS
    place = Site("block.mlp", INPUTS, outputs, position)
    # the linear maps inside an MLP
    inside = (("fc1", INPUTS, HIDDEN), ("fc2", HIDDEN, outputs))
    weight = torch.linspace(0.5, 1.5, place.reads)
    return Site(
        place.path,
        place.inputs,
        place.outputs,
        position,
        # a norm that is not 1 and 0, so that a cell that ignores it is found
        norm=(weight, weight.flip(0) - 1),
        layers=inside if "mlp" in tiny(card).roles else (),
    )


class Beside(Cell):
    """A cell with the addition of a `whole` cell to an MLP of random weights."""

    def __init__(self, cell: Cell) -> None:
        """Wrap a `whole` cell, which computes its host's output, too."""
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        """Return what the cell adds to a fixed MLP.  x: (..., INPUTS) -> (..., OUTPUTS)."""
        # the same MLP in every call, so that the rest is the cell's addition
        mlp = host().to(x.device, x.dtype)
        return self.cell.around(mlp, x) - mlp(x)


def host() -> nn.Module:
    """Return the MLP of `site`, frozen, with the same weights each time."""
    with torch_seed(0):
        return Mlp(INPUTS, HIDDEN, OUTPUTS).requires_grad_(False)


def build(card: Card, seed: int = 0) -> Cell:
    """Build an adapter's cell, the module that it adds to a layer, as it is before training."""
    # a whole cell also computes its host's output, which is taken off again
    cell = tiny(card).build(site(card), generator=seeded(seed))
    return Beside(cell) if isinstance(cell, Cell) and cell.whole else cell


def trained(card: Card, seed: int = 0) -> Cell:
    """Return a cell with all parameters moved: a start at zero hides what comes before."""
    return moved(build(card, seed), scale=0.5, seed=seed + 1)


def inputs(card: Card, *shape: int, seed: int = 2) -> Tensor:
    """Draw normal features (..., reads)."""
    return normal(*(shape or (BATCH, TOKENS)), site(card).reads, seed=seed)
