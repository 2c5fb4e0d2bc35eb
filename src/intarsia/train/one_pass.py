"""PACE in one pass: a sample's logits are held against the previous epoch's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..core.checks import at_least
from ..core.errors import ConfigError
from .objectives import Objective, logits_of
from .order import Inputs
from .outcome import LossOf, Outcome


@dataclass(frozen=True)
class OnePass:
    """L = CE(z) + weight * mean |z - z'|^2, z' the sample's logits of the epoch before (PACE_fast).

    z' has no gradient, so that a step costs one `plain`: one forward, and a row of logits kept for
    each sample, which a checkpoint holds. In the first epoch there is none; the released code then
    has zeros, which pull a new model's logits to 0.
    weight: 1, as in two passes, is too much: next to the noise, z - z' is all that the sample has
    learned in an epoch, and nothing offsets its pull back. 0 is `plain`.
    The loop gives it a `Memory`; it is no objective inside of another.
    Source: PACE, arXiv:2409.17137, section 3 (the fast variant).
    Not for few, long epochs: z' is then of weights long gone.
    Raises: ConfigError for a weight below 0, and where it is called without its memory.
    """

    weight: float = 0.03

    def __post_init__(self) -> None:
        at_least("weight", self.weight, 0, "Try 0.03.")

    def __call__(self, model: nn.Module, x: Inputs, loss_of: LossOf) -> NoReturn:
        """Raise ConfigError: only the loop of `fit` knows a batch's samples, see `Memory`."""
        got = "a step that does not say which samples it has, as inside task_heads"
        fix = "Pass it to fit by itself, or use `pace`, which needs no memory."
        raise ConfigError("objective OnePass", got=got, want="the loop of `fit`", fix=fix)


class Memory:
    """The newest logits of each training sample, (samples, classes), and which are there."""

    def __init__(self, settings: OnePass, samples: int) -> None:
        self.asked, self.samples = settings, samples
        self.logits = torch.zeros(0)
        self.known = torch.zeros(samples, dtype=torch.bool)

    def of(self, positions: Sequence[int]) -> Objective:
        """Return the objective for a batch of these samples.

        positions: (B,) of the samples in the training data, in the batch's order.
        """
        return partial(self._objective, torch.as_tensor(positions, dtype=torch.int64))

    def _objective(
        self, positions: Tensor, model: nn.Module, x: Inputs, loss_of: LossOf
    ) -> Outcome:
        """Compute L = CE + weight * mean over samples of |f_now(x) - f_before(x)|^2."""
        # f_now, f_before: logits of a sample, now and in the epoch before; positions: (B,) of the
        # samples in the training data, where their logits are stored
        now = logits_of(model, x)  # (B, classes)
        if now.ndim != 2 or len(now) != len(positions):
            got, want = f"outputs {tuple(now.shape)}", "a row of logits for each sample"
            fix = "Use `pace`, which compares two passes of one step."
            raise ConfigError("objective OnePass", got=got, want=want, fix=fix)
        # the number of classes is known at the first step
        if not len(self.logits):
            self.logits = torch.zeros(self.samples, now.shape[1])
        before, stored = self.logits[positions].to(now.device), self.known[positions].to(now)
        task = loss_of(now)
        # samples that no epoch has met yet add 0
        distance = ((now - before).square().sum(-1) * stored).mean()
        # on the CPU: a row for each sample may be too much for an accelerator
        self.logits[positions], self.known[positions] = now.detach().float().cpu(), True
        parts = {"task": task, "distance": distance}
        return Outcome(task + self.asked.weight * distance, now, parts)

    def state(self) -> dict[str, Any]:
        return {"logits": self.logits, "known": self.known}

    def load_state(self, state: dict[str, Any]) -> None:
        self.logits, self.known = state["logits"].clone(), state["known"].clone()
