"""The next session of a user: several items at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ...core.errors import DataError
from ..order import Batch, Inputs, pair
from ..outcome import TargetLoss
from ..scores import Named
from .next_item import NextItem
from .task import Task, refuse_output


@dataclass(frozen=True)
class NextSession(Task):
    """The next session of a user: several items, in any order.

    Samples are (history (t,), session (S,)), items from 1 on; histories are padded with 0 on the
    left. In evaluation a model gives the sessions that it would write, (B, S) whole numbers;
    training needs the objective `own_losses`. Scores: `recall`, the share of a session's items that
    were written, and `loss`, the share that was missed.
    """

    small_outputs: ClassVar[bool] = False
    labelled: ClassVar[bool] = False

    def collate(self, items: Sequence[Any]) -> tuple[Inputs, Any]:
        """Collate padded histories, and the sessions after them, (B, S).  Raises: DataError."""
        pairs = [pair(item) for item in items]
        rows = [(history, 1) for history, _ in pairs]
        sessions = [torch.as_tensor(session) for _, session in pairs]
        if len({tuple(s.shape) for s in sessions}) != 1 or sessions[0].ndim != 1:
            fix = "Cut sessions to one length."
            raise DataError("sessions", got="several lengths", want="one", fix=fix)
        # padding is as for histories of single items; their target is not used
        return NextItem(every=False).collate(rows)[0], torch.stack(sessions)

    def batch(self, inputs: Inputs, target: Any) -> Batch:
        """Return histories and sessions (B, S), counted from 1.  Raises: DataError for others."""
        if (
            not isinstance(inputs, Tensor)
            or target.is_floating_point()
            or bool((target <= 0).any())
        ):
            want, fix = "items counted from 1", "Add 1 to the items: 0 is none."
            raise DataError("sessions", got="0, fractions or names", want=want, fix=fix)
        return inputs, target.long()

    def seen(self, output: Tensor, batch: Batch) -> Self:
        if output.shape != batch[1].shape:
            refuse_output(output, batch[1], "(samples, items of a session)")
        return self

    def loss_of(self, batch: Batch) -> TargetLoss:
        return TargetLoss(_missed_share, batch[1])

    def rows(self, output: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        # (B, S): which items of the session were written
        hits = (batch[1][:, :, None] == output[:, None, :]).any(2)
        return (hits.double().mean(1),)

    def scores(self, *rows: Tensor) -> Named:
        recall = float(rows[0].mean())
        return Named({"loss": 1 - recall, "recall": recall}, "recall")


def _missed_share(output: Tensor, target: Tensor) -> Tensor:
    return 1 - (target[:, :, None] == output[:, None, :]).any(2).float().mean()
