"""A training in phases, each from a fresh optimiser."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.optim import Optimizer

Make = Callable[[nn.Module, float, float], Optimizer]  # (model, lr, weight decay)


def unchanged(make: Make) -> Make:
    return make


@dataclass(frozen=True)
class Phase:
    """One training of a model, which the method has prepared.

    length: its share of the epochs that were asked for.  optimizer: changes the run's own optimiser
    factory.  last: its result is the result of the training.  schedule: None = the run's own.
    """

    name: str
    length: float = 1.0
    last: bool = False
    optimizer: Callable[[Make], Make] = unchanged
    schedule: Any = None


@runtime_checkable
class Phased(Protocol):
    """A method that trains a model several times, and may change it in between."""

    def phases(self, model: nn.Module, *, seed: int = 0) -> Generator[Phase, None, Any]:
        """Yields each phase when the model is ready for it; returns what was found.

        seed: of what the method itself draws.
        """
        ...


Hook = Callable[..., None]


def hooked(make: Make, *, before: Hook | None = None, after: Hook | None = None) -> Make:
    """Optimisers that call `before` and `after` around every step."""

    def made(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
        optimizer = make(model, lr, weight_decay)
        if before is not None:
            optimizer.register_step_pre_hook(before)
        if after is not None:
            optimizer.register_step_post_hook(after)
        return optimizer

    return made
