"""Laws of a residual update, its addition to a stream of rows and the momentum it carries to the
next; and of a layer of experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core import Card
from ..gating import aux_loss
from ..mixtures.residual import Update
from .cards import CARD_LAWS, tiny
from .made import seeded
from .verdict import Law, require, require_close, require_equal

ROWS, WIDTH = 5, 6


def stream(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random rows, (ROWS, WIDTH), the same for a seed."""
    return torch.randn(ROWS, WIDTH, generator=seeded(seed), dtype=torch.float64).to(dtype)


class Stream(nn.Module):
    """Two equal blocks in a row under an update: what each of them adds and carries."""

    def __init__(self, update: Any) -> None:
        """Build the block, a linear map of random weights (WIDTH, WIDTH), which is used twice."""
        super().__init__()
        self.update = update
        self.block: Any = nn.utils.skip_init(nn.Linear, WIDTH, WIDTH, dtype=torch.float64)
        with torch.no_grad():
            self.block.weight.copy_(stream(7)[:1].T @ stream(8)[:1])
            self.block.bias.copy_(stream(9)[0])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Apply the block twice in a row under the update.

        x: (rows, WIDTH). Returns tensors (rows, WIDTH): for each of the two times the addition to
        x, and after it the momentum that is passed on, if the update has one.
        """
        first, m = self.update.step(self.block, x, None)
        values = first, m, *self.update.step(self.block, x + first, m)
        return [tensor for tensor in values if tensor is not None]


def _module(card: Card) -> nn.Module:
    """Build what a card stands for: a layer of experts, or two blocks under a residual update."""
    settings = tiny(card)
    if isinstance(settings, Update):
        return Stream(settings)
    module: nn.Module = settings.build(WIDTH, 7, generator=seeded())
    draw = seeded(1)
    with torch.no_grad():
        for parameter in module.parameters():  # gates may start at 0
            parameter.normal_(generator=draw)
    return module


def _outputs_of(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the outputs of a module as a list, without their graph."""
    output = module(x)
    return [tensor.detach() for tensor in (output if isinstance(output, list) else [output])]


def keeps_shape_and_dtype(card: Card) -> None:
    """Check that the method's outputs have x's shape, dtype and device."""
    # float64, half precision, no values, and no rows
    for x in (stream(0), stream(0, torch.bfloat16), stream(0).to("meta"), stream(0)[:0]):
        module = _module(card).to(x.device, x.dtype)
        want = x.shape, x.dtype, x.device.type
        for training in (True, False):
            for y in _outputs_of(module.train(training), x):
                require_equal((y.shape, y.dtype, y.device.type), want, "Compute in the dtype of x.")


def keeps_rows_apart(card: Card) -> None:
    """Check that a row's outputs in evaluation do not depend on the other rows of the batch.

    The tiny settings leave experts room for all rows.
    """
    rows, module = stream(1), _module(card).double().eval()
    # each row as a batch of one
    alone = zip(*(_outputs_of(module, row[None]) for row in rows), strict=True)
    fix = "Take no sum over rows; give the tiny settings room for all."
    for together, apart in zip(_outputs_of(module, rows), alone, strict=True):
        require_close(together, torch.cat(apart), "rows together and alone", fix)


def teaches_the_block(card: Card) -> None:
    """Check that training reaches the blocks before: their parameters get a gradient.

    An update between layers changes what a block adds to the residual stream; if it passed no
    gradient on, the block that computed the addition would not learn.
    """
    blocks = Stream(tiny(card))
    added = blocks(stream(2))[0]
    if added.requires_grad:
        (added * stream(3)).sum().backward()
    # a normalised step has the gradient 0 almost everywhere, and teaches nothing
    reached = all(
        p.grad is not None and float(p.grad.abs().max()) > 1e-2 for p in blocks.parameters()
    )
    require(reached, "no gradient to speak of", "one", "Do not take the sign.")


def layer_learns(card: Card) -> None:
    """Check that the layer's parameters all get a gradient from its outputs and losses."""
    layer = _module(card).double().train()
    (layer(stream(2)).mul(stream(3)).sum() + aux_loss(layer)).backward()
    idle = [n for n, p in layer.named_parameters() if p.grad is None or not bool(p.grad.any())]
    fix = "Take idle parameters out."
    require(not idle, f"nothing for {idle}", "a gradient for every parameter", fix)


def laws(card: Card) -> tuple[Law, ...]:
    """Return the laws of an update or, if the card has a `build`, of a layer."""
    learns = teaches_the_block if isinstance(tiny(card), Update) else layer_learns
    return (*CARD_LAWS, keeps_shape_and_dtype, keeps_rows_apart, learns)
