"""A failed change leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def undone_on_error(model: nn.Module) -> Iterator[None]:
    """Inside, a model is changed; after an error its modules are what they were.

    Modules, hooks, flags, modes, attributes and the config are put back; numbers written into a
    weight that stays are not: a change writes those last.
    """
    config = getattr(model, "config", None)
    owners: list[Any] = [*model.modules(), *([config] if hasattr(config, "__dict__") else [])]
    held = [(vars(owner), copy.copy(vars(owner))) for owner in owners]
    inside = [
        (value, copy.copy(value))
        for _, before in held
        for value in before.values()
        if isinstance(value, (dict, list, set))
    ]
    trained = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    except BaseException:
        # in place, since others hold the same containers: handles of hooks, PEFT's layers
        for now, before in (*held, *inside):
            now.clear()
            (now.extend if isinstance(now, list) else now.update)(before)
        for parameter, flag in trained:
            parameter.requires_grad_(flag)
        raise
