"""The next item of a history: sequential recommendation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.checks import at_least
from ...core.errors import DataError
from ..order import IGNORED, Batch, Inputs, pair
from ..outcome import TargetLoss, wide
from ..scores import Named, rank_of, ranking
from .classes import check_range
from .task import Task, refuse_output


@dataclass(frozen=True)
class NextItem(Task):
    """Cross-entropy of the item that follows a history, over all items (SASRec, arXiv:1808.09781).

    Samples are (history (t,), next item), whole numbers from 1 on; histories are padded with 0 on
    the left. A model reads (B, T) and gives logits (B, T, items + 1), item 0 among them, and learns
    from every place of the history; with every=False it gives (B, items + 1), for the next item
    only. The loss is the mean over the predictions. Scores are of the last place, among all
    items: `loss`, `hit_rate_k`, `ndcg_k`, `reciprocal_rank`. Items of the history are not left out.
    """

    small_outputs: ClassVar[bool] = False  # (B, T, items)
    labelled: ClassVar[bool] = False

    every: bool = True
    k: int = 10
    items: int | None = None  # of the model's logits, None = read off its output

    def __post_init__(self) -> None:
        at_least("k", self.k, 1)

    def collate(self, items: Sequence[Any]) -> tuple[Inputs, Any]:
        """Collate histories of different lengths into one batch, padded with 0 on the left.

        Raises: DataError for a history that is empty or not a row of whole numbers.
        """
        pairs = [pair(item) for item in items]
        histories = [_history_tensor(history) for history, _ in pairs]
        if any(h.ndim != 1 or h.is_floating_point() or not len(h) for h in histories):
            got = "one that is empty, or no row of whole numbers"
            want = "the items before the next one, at least 1"
            raise DataError("a history", got=got, want=want, fix="Leave out users with one item.")
        longest = max(len(history) for history in histories)
        x = torch.stack([F.pad(h.long(), (longest - len(h), 0)) for h in histories])
        return x, torch.as_tensor([int(following) for _, following in pairs])

    def batch(self, inputs: Inputs, target: Any) -> Batch:
        """Return the histories (B, L) and the items that are to be predicted.

        inputs: histories padded with 0; target: (B,) next items, counted from 1, which are
          returned; with `every`, (B, L) is returned: the item that follows each place of the
          history, IGNORED at padding.
        Raises: DataError.
        """
        if not isinstance(inputs, Tensor) or bool((target <= 0).any()):
            raise DataError(
                "next items",
                got=f"{int(target.min())}" if isinstance(inputs, Tensor) else "inputs by name",
                want="(history, next item), items counted from 1",
                fix="0 is what histories are padded with: add 1 to the items.",
            )
        if not self.every:
            return inputs, target
        # every place predicts the item after it, the last one the target; padding predicts nothing
        following = torch.cat([inputs[:, 1:], target[:, None]], 1)
        return inputs, following.masked_fill(inputs == 0, IGNORED)

    def seen(self, output: Tensor, batch: Batch) -> Self:
        """Return the task with the number of items that the output has.  Raises: DataError."""
        if output.shape[:-1] != batch[1].shape:
            want = "(samples, places, items)" if self.every else "(samples, items)"
            refuse_output(output, batch[1], want)
        return dataclasses.replace(self, items=output.shape[-1])

    def check(self, target: Tensor) -> None:
        if self.items is not None:
            check_range(target[target != IGNORED], self.items)

    def count(self, batch: Batch) -> int:
        return int((batch[1] != IGNORED).sum())

    def loss_of(self, batch: Batch) -> TargetLoss:
        return TargetLoss(_cross_entropy, batch[1], read=_labelled_logits)

    def rows(self, output: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Return loss and rank of each sample's next item; the logits are not kept."""
        target = batch[1][:, -1] if self.every else batch[1]
        logits = wide(output[:, -1] if self.every else output)
        check_range(target, logits.shape[-1])
        score = logits.gather(1, target[:, None])[:, 0]
        loss = F.cross_entropy(logits, target, reduction="none")
        return loss.double(), rank_of(score, logits)

    def scores(self, *rows: Tensor) -> Named:
        loss, ranks = rows
        return Named({"loss": float(loss.mean())} | ranking(ranks, self.k), f"ndcg_{self.k}")


def _history_tensor(history: Any) -> Tensor:
    """Return a history as a tensor; for a mapping a scalar, which is refused later."""
    return torch.zeros(()) if isinstance(history, Mapping) else torch.as_tensor(history)


def _labelled_logits(logits: Tensor, target: Tensor) -> Tensor:
    return logits[target != IGNORED]


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(wide(_labelled_logits(logits, target)), target[target != IGNORED])
