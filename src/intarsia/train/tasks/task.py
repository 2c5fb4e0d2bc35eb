"""A task: what the loss of a model's output is, and how good outputs are."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ...core.errors import DataError
from ..objectives import Objective, logits_of, plain
from ..order import Batch, Inputs, pair, stack
from ..outcome import Outcome, TargetLoss
from ..scores import Scores


class Task(abc.ABC):
    """The form of batches, their loss and their scores, which the loop does not know.

    An objective says how many forwards a step has and how they are combined; a task says what the
    loss of one output is. A batch is (inputs, target), its loss a mean over `count` things.
    """

    small_outputs: ClassVar[bool] = True  # many samples fit into one batch of evaluation
    labelled: ClassVar[bool] = True  # samples are (inputs, label)
    answers: ClassVar[bool] = False  # is there a training accuracy for a schedule to follow?

    @property
    def whole(self) -> bool:
        """True if the loss compares the rows of a batch, which then cannot be taken in parts."""
        return False

    def collate(self, items: Sequence[Any]) -> tuple[Inputs, Any]:
        """Collate samples into one batch, rows of tokens padded.  Raises: DataError."""
        return stack([pair(item) for item in items])

    @abc.abstractmethod
    def batch(self, inputs: Inputs, target: Any) -> Batch:
        """Return a batch in the task's own types.  Raises: DataError for another target."""

    def seen(self, output: Tensor, batch: Batch) -> Self:
        """Return the task, knowing a model's output.  Raises: DataError if it does not fit."""
        return self

    def check(self, target: Tensor) -> None:  # noqa: B027
        """Refuse a target that the model has no output for; by default none.  Raises: DataError."""

    def count(self, batch: Batch) -> int:
        """Count the terms of the loss's mean, by which the parts of a batch are weighed."""
        return len(batch[1])

    @abc.abstractmethod
    def loss_of(self, batch: Batch) -> TargetLoss:
        """Return the function that computes the loss of an output for this batch."""

    def loss(self, model: nn.Module, batch: Batch, objective: Objective = plain) -> Outcome:
        """Compute the loss of one batch, with its named parts."""
        return objective(model, batch[0], self.loss_of(batch))

    def noted(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return other values to log of a training step: means over the batch."""
        return {}

    def rows(self, output: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Return the values of a batch that its scores need: tensors with one row a sample."""
        return output, batch[1]

    @abc.abstractmethod
    def scores(self, *rows: Tensor) -> Scores:
        """Compute a whole set's scores.  rows: of all batches, on the CPU.  Raises: DataError."""

    @torch.no_grad()
    def score(self, model: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Compute the scores of a model on some batches, in its present mode."""
        outputs = [self.rows(logits_of(model, batch[0]), batch) for batch in batches]
        rows = (torch.cat(parts).cpu() for parts in zip(*outputs, strict=True))
        return self.scores(*rows).scores()


def refuse_output(output: Tensor, target: Tensor, want: str) -> None:
    """Raise DataError for an output of a shape that does not fit the target."""
    got = f"shape {tuple(output.shape)} for labels {tuple(target.shape)}"
    fix = "Give the model the head that its labels want, or fit the task that it has: task=..."
    raise DataError("the model's output", got=got, want=want, fix=fix)
