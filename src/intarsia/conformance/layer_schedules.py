"""Laws of a schedule whose layers compute with other weights than those that are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core import Card
from .cards import CARD_LAWS, tiny
from .made import normal
from .sparse_schedules import net
from .verdict import Law, laws_of, require


def _dense() -> nn.Module:
    return net(sparse=False)


def _said(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(normal(5, 2, 4, 4))


def ends_with_what_it_computed(card: Card) -> None:
    """Outputs are the same before its end, after it, after it once more, and when it is over."""
    schedule: Any = tiny(card)
    model = _dense()
    with schedule.training(model) as end:
        found = [_said(model)]
        for _ in range(2):
            end()
            found.append(_said(model))
    found.append(_said(model))
    for other in found[1:]:
        off = float((other - found[0]).abs().max())
        fix = "Give the weights that the layers compute with."
        require(torch.equal(other, found[0]), f"outputs {off:g} apart", "the same", fix)


def computes_something_else(card: Card) -> None:
    """Inside, some output differs from the dense model's."""
    schedule: Any = tiny(card)
    model = _dense()
    before = _said(model)
    with schedule.training(model):
        same = torch.equal(_said(model), before)
    require(not same, "a dense model's outputs", "others", "Compute with other weights.")


def trains_all_weights_of_a_plain_model(card: Card) -> None:
    """Names and values stay, every weight has a gradient, and layers are plain when it is over."""
    schedule: Any = tiny(card)
    model = _dense()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    try:
        with schedule.training(model):
            model(normal(5, 2, 4, 4)).square().sum().backward()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    after = model.state_dict()
    same = before.keys() == after.keys() and all(
        torch.equal(t, after[n]) for n, t in before.items()
    )
    require(same, "other parameters", "those of the model", "Train them, change only the end.")
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        some = 0.0 if grad is None else float((grad != 0).float().mean())
        require(some > 0.5, f"gradients for {some:.0%} of {name!r}", "all", "Mask no gradient.")
    own = [n for n, m in model.named_modules() if "forward" in vars(m)]
    require(not own, f"forwards of its own in {own}", "plain layers", "Undo it on an error, too.")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
