"""The one way in which a model is changed: planned, applied, undone on an error, recorded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from peft import PeftModel
from torch import nn

from ..core.change import Change, Plan, Step, set_steps, steps_of
from .anatomy.origin import fingerprint
from .undo import undone_on_error


def base_of(model: nn.Module) -> nn.Module:
    """The model without PEFT's wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def apply_change(
    model: nn.Module,
    change: Change,
    batches: Iterable[Any] = (),
    *,
    seed: int = 0,
    name: str = "default",
) -> nn.Module:
    """The model with a change; on an error it is as it was.

    Raises: what the change's `plan` and `apply` raise.
    """
    return apply_plan(model, change.plan(model, batches, seed=seed), name)


def apply_plan(model: nn.Module, plan: Plan, name: str = "default") -> nn.Module:
    """The model with a plan applied; on an error it is as it was."""
    host = base_of(model)
    before, on = steps_of(host), fingerprint(host)
    with undone_on_error(model):
        new = plan.change.apply(model, plan, name=name)
    # changes that rewrite what was recorded, or are recorded elsewhere, say so
    if getattr(plan.change, "recorded", True):
        set_steps(base_of(new), (*before, Step(plan, name, on)))
    return new
