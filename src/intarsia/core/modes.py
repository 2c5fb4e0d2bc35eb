"""Training and evaluation mode of a model, and back."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

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
