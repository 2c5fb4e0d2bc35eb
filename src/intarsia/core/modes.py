"""A module in another mode or with another forward for a while, and back."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Evaluation mode; afterwards every module is as it was."""
    with modes_kept(model):
        model.eval()
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Generator[None]:
    """Afterwards every module is in the mode it was in."""
    before = {m: m.training for m in model.modules()}
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextmanager
def forward_as(module: nn.Module, forward: Callable[..., Any]) -> Generator[None]:
    """Inside, the module computes this; it, its name and its hooks stay as they are."""
    attributes = vars(module)
    before = attributes.get("forward")
    attributes["forward"] = forward
    try:
        yield
    finally:
        del attributes["forward"]
        if before is not None:
            attributes["forward"] = before
