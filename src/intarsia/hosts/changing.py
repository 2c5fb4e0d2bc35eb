"""The one way in which a model is changed: planned, applied, undone on an error, recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..core.change import Change, Plan, Step, set_steps, steps_of
from ..core.foreign import config_of
from ..core.registry import card, check_types, settings_from_dict
from .anatomy.blocks import base_of
from .anatomy.origin import fingerprint


def apply_change(
    model: nn.Module,
    change: Change,
    batches: Iterable[Any] = (),
    *,
    seed: int = 0,
    name: str = "default",
) -> nn.Module:
    """Plan a change, apply it to a model and return the model; after an error it is as before.

    batches: calibration data, for changes that read it.
    Raises: ConfigError for settings of another type than is declared; what the change's `plan` and
    `apply` raise.
    """
    check_types(change)
    return apply_plan(model, change.plan(model, batches, seed=seed), name)


def apply_plan(model: nn.Module, plan: Plan, name: str = "default") -> nn.Module:
    """Apply a plan, record it in the model, and return the model; an error changes nothing."""
    host = base_of(model)
    before, on = steps_of(host), fingerprint(host)
    # a plan with a folder restores the weights from there: no second copy is held in memory
    with undone_on_error(model, numbers=not plan.undoes_itself):
        new = plan.change.apply(model, plan, name=name)
    if plan.change.recorded:
        set_steps(base_of(new), (*before, Step(plan, name, on)))
    return new


def step_of(entry: Mapping[str, Any]) -> Step:
    """Build a recorded change from its entry in the file of a saved folder."""
    change = settings_from_dict(card(str(entry["key"])), entry["settings"])
    plan = Plan(change, int(entry["seed"]), dict(entry["decided"]))
    return Step(plan, str(entry["name"]), dict(entry["on"]))


def repeat(model: nn.Module, step: Step) -> nn.Module:
    """Apply a recorded change that was read from a file, and return the model."""
    before = steps_of(base_of(model))
    model = step.plan.change.apply(model, step.plan, name=step.name)
    set_steps(base_of(model), (*before, step))
    return model


@contextmanager
def undone_on_error(model: nn.Module, numbers: bool = True) -> Iterator[None]:
    """Restore a model's modules if the body of the `with` raises.

    Modules, hooks, flags, modes, attributes, the config and each weight's tensor are put back.
    Numbers that were written into a tensor are not: a change must write those last. numbers: False
    = do not remember the weights' tensors, since the change restores them itself.
    """
    config = config_of(model)
    owners: list[Any] = [*model.modules(), *([config] if hasattr(config, "__dict__") else [])]
    # dict.copy, since `copy.copy` of thousands of OrderedDicts is slow
    saved = [(vars(owner), vars(owner).copy()) for owner in owners]
    # lists, dicts and sets one level down: an attribute may be changed without being assigned
    containers = [
        (value, value.copy())
        for _, before in saved
        for value in before.values()
        if isinstance(value, (dict, list, set))
    ]
    trained = [(p, p.requires_grad) for p in model.parameters()]
    tensors = [(p, p.data) for p in model.parameters()] if numbers else []
    try:
        yield
    except BaseException:
        # in place, since others hold the same containers: handles of hooks, PEFT's layers
        for now, before in (*saved, *containers):
            now.clear()
            (now.extend if isinstance(now, list) else now.update)(before)
        for parameter, tensor in tensors:
            parameter.data = tensor
        for parameter, flag in trained:
            parameter.requires_grad_(flag)
        raise
