"""Laws of a residual update, what it adds to a stream of rows and what it carries to the next; and
of a layer of experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core import Card
from ..gating import aux_loss
from .cards import CARD_LAWS, tiny
from .made import seeded
from .verdict import Law, require, require_close, require_equal

ROWS, WIDTH = 5, 6


def stream(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = seeded(seed)
    return torch.randn(ROWS, WIDTH, generator=draw, dtype=torch.float64).to(dtype)


def block(dtype: torch.dtype = torch.float64) -> nn.Linear:
    layer: Any = nn.utils.skip_init(nn.Linear, WIDTH, WIDTH, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(stream(7)[:1].T @ stream(8)[:1])
        layer.bias.copy_(stream(9)[0])
    return layer


def _kind(x: Tensor) -> tuple[object, ...]:
    return x.shape, x.dtype, x.device.type


def _steps(card: Card, f: nn.Module, x: Tensor) -> list[Tensor | None]:
    """What two blocks in a row add and carry."""
    update: Any = tiny(card)
    first, m = update.step(f, x, None)
    return [first, m, *update.step(f, x + first, m)]


def keeps_shape_and_dtype(card: Card) -> None:
    """What is added and carried is as x is."""
    for x in (stream(0), stream(0, torch.bfloat16), stream(0).to("meta")):
        for made in _steps(card, block(x.dtype).to(x.device), x):
            if made is not None:
                require_equal(_kind(made), _kind(x), "Compute in the dtype of f(x).")


def keeps_rows_apart(card: Card) -> None:
    """A row's change and momentum depend on no other row."""
    whole, f = stream(1), block()
    alone = [_steps(card, f, row[None]) for row in whole]
    for i, made in enumerate(_steps(card, f, whole)):
        if made is not None:
            apart = torch.cat([one for row in alone if (one := row[i]) is not None])
            fix = "Take no sum over rows."
            require_close(made.detach(), apart.detach(), "rows together and alone", fix)


def teaches_the_block(card: Card) -> None:
    """The first block gets a gradient from what it adds."""
    f = block()
    added = _steps(card, f, stream(2))[0]
    assert added is not None
    if added.requires_grad:
        (added * stream(3)).sum().backward()
    shown = all(p.grad is not None and float(p.grad.abs().max()) > 1e-2 for p in f.parameters())
    require(shown, "no gradient to speak of", "one", "Do not take the sign.")


def _layer(card: Card) -> nn.Module:
    made: nn.Module = tiny(card).build(WIDTH, 7, generator=seeded())
    draw = seeded(1)
    with torch.no_grad():
        for parameter in made.parameters():  # gates may start at 0
            parameter.normal_(generator=draw)
    return made


def layer_keeps_shape_and_dtype(card: Card) -> None:
    """What comes out is as x is, in training and in evaluation."""
    for x in (stream(0), stream(0, torch.bfloat16), stream(0).to("meta"), stream(0)[:0]):
        layer = _layer(card).to(x.device, x.dtype)
        for training in (True, False):
            y = layer.train(training)(x)
            require_equal(_kind(y), _kind(x), "Compute in the dtype of x.")


def layer_keeps_rows_apart(card: Card) -> None:
    """In evaluation, where there is room for all, a row's output depends on no other row."""
    whole, layer = stream(1), _layer(card).double().eval()
    apart = torch.cat([layer(row[None]) for row in whole])
    fix = "Take no sum over rows; give the tiny settings room for all."
    require_close(layer(whole).detach(), apart.detach(), "rows together and alone", fix)


def layer_learns(card: Card) -> None:
    """Every parameter is reached by the gradient of the output and the losses."""
    layer = _layer(card).double().train()
    (layer(stream(2)).mul(stream(3)).sum() + aux_loss(layer)).backward()
    idle = [n for n, p in layer.named_parameters() if p.grad is None or not bool(p.grad.any())]
    fix = "Take idle parameters out."
    require(not idle, f"nothing for {idle}", "a gradient for every parameter", fix)


STEP_LAWS = keeps_shape_and_dtype, keeps_rows_apart, teaches_the_block
LAYER_LAWS = layer_keeps_shape_and_dtype, layer_keeps_rows_apart, layer_learns


def laws(card: Card) -> tuple[Law, ...]:
    """Those of a layer if its config offers `build`, else those of an update, which has `step`."""
    return (*CARD_LAWS, *(LAYER_LAWS if hasattr(card.config, "build") else STEP_LAWS))
