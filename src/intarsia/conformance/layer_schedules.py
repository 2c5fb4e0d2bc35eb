"""Laws of a schedule with layers that compute with other weights than those that are trained."""

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


def _outputs(model: nn.Module) -> Tensor:
    """Compute the model on fixed inputs, without a graph."""
    with torch.no_grad():
        return model(normal(5, 2, 4, 4))


def ends_with_what_it_computed(card: Card) -> None:
    """Check that ending the schedule's training, also twice, does not change the outputs."""
    schedule: Any = tiny(card)
    model = _dense()
    with schedule.training(model) as end:
        outputs = [_outputs(model)]
        # ending twice, as a resumed run may, must not change the weights again
        for _ in range(2):
            end()
            outputs.append(_outputs(model))
    outputs.append(_outputs(model))
    for output in outputs[1:]:
        off = float((output - outputs[0]).abs().max())
        fix = "Give the weights that the layers compute with."
        require(torch.equal(output, outputs[0]), f"outputs {off:g} apart", "the same", fix)


def computes_something_else(card: Card) -> None:
    """Check that layers compute other outputs than the dense model while the schedule is on."""
    schedule: Any = tiny(card)
    model = _dense()
    before = _outputs(model)
    with schedule.training(model):
        # otherwise the schedule would have no effect
        equal = torch.equal(_outputs(model), before)
    require(not equal, "a dense model's outputs", "others", "Compute with other weights.")


def trains_all_weights_of_a_plain_model(card: Card) -> None:
    """Check that the schedule lets a model train, and is undone by an error in the training.

    Each parameter must get a gradient in over half of its entries; after the error parameters and
    forwards must be as before.
    """
    schedule: Any = tiny(card)
    model = _dense()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    try:
        with schedule.training(model):
            model(normal(5, 2, 4, 4)).square().sum().backward()
            # an interruption must restore the layers, too
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    after = model.state_dict()
    equal = before.keys() == after.keys() and all(
        torch.equal(t, after[n]) for n, t in before.items()
    )
    require(equal, "other parameters", "those of the model", "Train them, change only the end.")
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        # a mask on the gradient would leave most of it at 0
        share = 0.0 if grad is None else float((grad != 0).float().mean())
        require(share > 0.5, f"gradients for {share:.0%} of {name!r}", "all", "Mask no gradient.")
    replaced = [n for n, m in model.named_modules() if "forward" in vars(m)]
    require(
        not replaced,
        f"forwards of its own in {replaced}",
        "plain layers",
        "Undo it on an error, too.",
    )


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
