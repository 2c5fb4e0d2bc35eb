"""A moving average of the weights that are trained, which is scored in their place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """a <- d_t a + (1 - d_t) w after step t = 0, 1, ..., from a = w before the first.

    d_t = min(decay, (1 + t) / (10 + t)), so that a short run forgets its start as a long one does.
    The factors are as in TensorFlow's ExponentialMovingAverage with `num_updates`; Polyak and
    Juditsky 1992 is the plain mean. It draws nothing and changes no step.
    parameters: the trained ones.  Not for weights that a mask replaces on the way.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values = [p.detach().clone() for p in parameters]
        self.steps = 0

    def add(self) -> None:
        """Move the average towards the parameters, once after each step of training."""
        # 0.1 at the first step, so that the starting weights are soon forgotten
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        now: Any = [p.detach() for p in self.parameters]
        get_ema_multi_avg_fn(decay)(self.values, now, self.steps)  # pyright: ignore
        self.steps += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averaged values into the parameters inside the context; then restore them."""
        # copies: the averages go into the parameters' own memory, which the optimiser holds
        latest = [p.detach().clone() for p in self.parameters]
        self.keep()
        try:
            yield
        finally:
            _copy_into(self.parameters, latest)

    def keep(self) -> None:
        """Put the averaged values into the parameters for good."""
        _copy_into(self.parameters, self.values)

    def state(self) -> dict[str, Any]:
        return {"values": list(self.values), "steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        _copy_into(self.values, state["values"])
        self.steps = state["steps"]


@torch.no_grad()
def _copy_into(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)
