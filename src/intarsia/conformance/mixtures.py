"""Laws of a residual update, what it adds to a stream of rows and what it carries to the next; and
of a layer of experts."""

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
    return torch.randn(ROWS, WIDTH, generator=seeded(seed), dtype=torch.float64).to(dtype)


class Stream(nn.Module):
    """Two equal blocks in a row under an update: what each of them adds and carries."""

    def __init__(self, update: Any) -> None:
        super().__init__()
        self.update = update
        self.block: Any = nn.utils.skip_init(nn.Linear, WIDTH, WIDTH, dtype=torch.float64)
        with torch.no_grad():
            self.block.weight.copy_(stream(7)[:1].T @ stream(8)[:1])
            self.block.bias.copy_(stream(9)[0])

    def forward(self, x: Tensor) -> list[Tensor]:
        first, m = self.update.step(self.block, x, None)
        made = first, m, *self.update.step(self.block, x + first, m)
        return [tensor for tensor in made if tensor is not None]


def _module(card: Card) -> nn.Module:
    """Return blocks under the update that the config is, or the layer that it builds, drawn."""
    settings = tiny(card)
    if isinstance(settings, Update):
        return Stream(settings)
    made: nn.Module = settings.build(WIDTH, 7, generator=seeded())
    draw = seeded(1)
    with torch.no_grad():
        for parameter in made.parameters():  # gates may start at 0
            parameter.normal_(generator=draw)
    return made


def _ran(module: nn.Module, x: Tensor) -> list[Tensor]:
    made = module(x)
    return [each.detach() for each in (made if isinstance(made, list) else [made])]


def keeps_shape_and_dtype(card: Card) -> None:
    """What is added and carried, or comes out, is as x is, in training and in evaluation."""
    for x in (stream(0), stream(0, torch.bfloat16), stream(0).to("meta"), stream(0)[:0]):
        module = _module(card).to(x.device, x.dtype)
        want = x.shape, x.dtype, x.device.type
        for training in (True, False):
            for y in _ran(module.train(training), x):
                require_equal((y.shape, y.dtype, y.device.type), want, "Compute in the dtype of x.")


def keeps_rows_apart(card: Card) -> None:
    """In evaluation, where there is room for all, a row's values depend on no other row."""
    whole, module = stream(1), _module(card).double().eval()
    alone = zip(*(_ran(module, row[None]) for row in whole), strict=True)
    fix = "Take no sum over rows; give the tiny settings room for all."
    for together, apart in zip(_ran(module, whole), alone, strict=True):
        require_close(together, torch.cat(apart), "rows together and alone", fix)


def teaches_the_block(card: Card) -> None:
    """The first block gets a gradient from what it adds."""
    blocks = Stream(tiny(card))
    added = blocks(stream(2))[0]
    if added.requires_grad:
        (added * stream(3)).sum().backward()
    shown = all(
        p.grad is not None and float(p.grad.abs().max()) > 1e-2 for p in blocks.parameters()
    )
    require(shown, "no gradient to speak of", "one", "Do not take the sign.")


def layer_learns(card: Card) -> None:
    """Every parameter is reached by the gradient of the output and the losses."""
    layer = _module(card).double().train()
    (layer(stream(2)).mul(stream(3)).sum() + aux_loss(layer)).backward()
    idle = [n for n, p in layer.named_parameters() if p.grad is None or not bool(p.grad.any())]
    fix = "Take idle parameters out."
    require(not idle, f"nothing for {idle}", "a gradient for every parameter", fix)


def laws(card: Card) -> tuple[Law, ...]:
    """Those of a layer if its config offers `build`, else those of an update, which has `step`."""
    learns = teaches_the_block if isinstance(tiny(card), Update) else layer_learns
    return (*CARD_LAWS, keeps_shape_and_dtype, keeps_rows_apart, learns)
