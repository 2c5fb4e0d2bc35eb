"""A training in phases, each from a fresh optimiser."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.optim import Optimizer

Make = Callable[[nn.Module, float, float], Optimizer]  # (model, lr, weight decay)


def unchanged(make: Make) -> Make:
    """Return the factory of optimisers as it is."""
    return make


class EndedTraining(Protocol):
    """A run after its training, with its scores still to come."""

    @property
    def model(self) -> nn.Module: ...

    def recalibrate(self, share: float) -> None:
        """Compute the statistics of batch norms again, on a share of the training data."""
        ...

    def score(self) -> float:
        """Return the model's score on the validation set, more is better."""
        ...


@dataclass(frozen=True)
class Settle:
    """A method's work on a trained model before it is scored and saved.

    run: does it; by_val: it asks for scores, so that there must be validation data which share no
    sample with the training data.
    """

    run: Callable[[EndedTraining], None]
    by_val: bool = False


@dataclass(frozen=True)
class Phase:
    """A single training of a model, which the method has prepared.

    length: its share of the epochs that were asked for.  optimizer: changes the run's own optimiser
    factory.  last: its result is the result of the training.  schedule: None = the run's own.
    options: further keywords of `fit` that are others in this phase.  settle: see `Settle`.
    """

    name: str
    length: float = 1.0
    last: bool = False
    optimizer: Callable[[Make], Make] = unchanged
    schedule: Any = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settle: Settle | None = None


@runtime_checkable
class Phased(Protocol):
    """A method that trains a model several times, and may change it in between."""

    def phases(self, model: nn.Module, *, seed: int = 0) -> Generator[Phase, None, Any]:
        """Yield each training phase when the model is ready for it; return the method's result.

        model: is trained by the caller after each phase is yielded; seed: for the method's own
          random draws.
        """
        ...


Hook = Callable[..., None]


def hooked(make: Make, *, before: Hook | None = None, after: Hook | None = None) -> Make:
    """Return a factory of optimisers that call `before` and `after` around every step.

    make: f(model, lr, weight_decay) makes the optimiser; the result is such a function, too.
      before, after: hooks as of torch's optimisers, None = none.
    """

    def factory(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
        """Make the optimiser by `make`, and register the hooks `before` and `after` its steps."""
        optimizer = make(model, lr, weight_decay)
        # torch calls them around each optimizer.step()
        if before is not None:
            optimizer.register_step_pre_hook(before)
        if after is not None:
            optimizer.register_step_post_hook(after)
        return optimizer

    return factory
