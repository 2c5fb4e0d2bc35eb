"""Tags of an adapter, each checked in both directions: missing and needless ones are found."""

from __future__ import annotations

import torch
from timm.layers.mlp import Mlp
from torch import nn

from ..core import Card
from ..core.errors import FoldError, TargetError
from ..hosts.out.fold import fold_cell
from .cards import tiny
from .cells import DRAWS, HIDDEN, INPUTS, OUTPUTS, build, inputs, site, trained
from .verdict import require_close, require_tag


def zero_start_exactly_when_tagged(card: Card) -> None:
    """ "zero_start": before training the cell adds rounding at most; the host is what it was."""
    with torch.no_grad():
        found = [build(card).train(mode)(inputs(card)) for mode in (True, False)]
    shown = not any(bool((y.abs() > 1e-6).any()) for y in found)
    require_tag(card, "zero_start", shown, "an addition of zero before training")


def linear_exactly_when_tagged(card: Card) -> None:
    """ "linear": delta() is the matrix (outputs, reads) by which the cell acts; else None."""
    cell = trained(card).double().eval()
    delta, x = cell.delta(), inputs(card).double()
    require_tag(card, "linear", delta is not None, "a delta()")
    if delta is not None:
        with torch.no_grad():
            require_close(
                x @ delta.T,
                cell(x),
                what="x @ delta().T and forward(x)",
                fix="delta() is the whole change of the weight, its scale included.",
            )


def stochastic_exactly_when_tagged(card: Card) -> None:
    """ "stochastic": two forwards in training differ."""
    cell, x = trained(card).train(), inputs(card)
    with torch.no_grad():
        first = cell(x)
        shown = any(not torch.equal(cell(x), first) for _ in range(DRAWS))
    require_tag(card, "stochastic", shown, "forwards in training that differ")


def folds_exactly_when_tagged(card: Card) -> None:
    """ "folds": beside an MLP, or a linear layer where its roles say so, it becomes weights."""
    where = site(card)
    host: nn.Module = nn.Linear(INPUTS, OUTPUTS)
    if "mlp" in tiny(card).roles:
        host = Mlp(INPUTS, HIDDEN, OUTPUTS)
    cell = trained(card)
    try:
        fold_cell(host.double().eval(), cell, where.path, where.position)
        shown = True
    except (FoldError, TargetError):
        shown = False
    require_tag(card, "folds", shown, "a cell that becomes weights of its host")
