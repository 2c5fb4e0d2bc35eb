"""Rows of tokens, each predicted from those before it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import DataError
from ..order import IGNORED, Batch, Inputs
from ..outcome import TargetLoss, wide
from ..scores import TokenMetrics
from .classes import check_range, whole_numbers
from .task import Task, refuse_output


def labelled(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits before each labelled token.  (B, T, V), (B, T) -> (N, V)."""
    return logits[:, :-1][labels[:, 1:] != IGNORED]


def next_token(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Compute the mean cross-entropy of the next token, over the tokens that have a label.

    logits: (B, T, V), of the token after each; labels: (B, T), the tokens themselves, -100 where
      nothing is to be predicted; label_smoothing: share that goes to all tokens.
    """
    target = labels[:, 1:]
    target = target[target != IGNORED]  # answers are a small part of most texts
    picked = wide(labelled(logits, labels))
    total = F.cross_entropy(picked, target, label_smoothing=label_smoothing, reduction="sum")
    return total / max(1, len(target))


@dataclass(frozen=True)
class Tokens(Task):
    """`next_token` of a causal language model; the scores are `TokenMetrics`.

    vocabulary: of the model, None = read off its output; smoothing: of the labels.
    """

    small_outputs: ClassVar[bool] = False  # (B, T, V)
    answers: ClassVar[bool] = True

    vocabulary: int | None = None
    smoothing: float = 0.0

    def batch(self, inputs: Inputs, target: Any) -> Batch:
        return inputs, whole_numbers(target, 2, "one whole number for each token")

    def seen(self, output: Tensor, batch: Batch) -> Self:
        if output.ndim != 3:
            refuse_output(output, batch[1], "(texts, tokens, vocabulary) for labels of tokens")
        return dataclasses.replace(self, vocabulary=output.shape[-1])

    def check(self, target: Tensor) -> None:
        if self.vocabulary is not None:
            check_range(target[target != IGNORED], self.vocabulary)

    def count(self, batch: Batch) -> int:
        return int((batch[1][:, 1:] != IGNORED).sum())

    def loss_of(self, batch: Batch) -> TargetLoss:
        criterion = partial(next_token, label_smoothing=self.smoothing)
        return TargetLoss(criterion, batch[1], read=labelled)

    def noted(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        target = batch[1][:, 1:]
        hits = labelled(output, batch[1]).argmax(-1) == target[target != IGNORED]
        return {"accuracy": hits.float().sum() / max(1, hits.numel())}  # a part may have none

    def rows(self, output: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        """Return each text's summed loss, its number of tokens with a label, and of hits, (B, 3).

        The loss is computed in float32 and summed in float64.
        """
        labels = batch[1]
        check_range(labels[labels != IGNORED], output.shape[-1])
        mask = labels[:, 1:] != IGNORED
        picked, targets = wide(labelled(output, labels)), labels[:, 1:][mask]
        loss = F.cross_entropy(picked, targets, reduction="none").double()
        counts = torch.stack(
            [loss, torch.ones_like(loss), (picked.argmax(-1) == targets).double()], 1
        )
        # each labelled token's values are added to its text
        row = mask.nonzero()[:, 0]
        return (counts.new_zeros(len(labels), 3).index_add_(0, row, counts),)

    def scores(self, *rows: Tensor) -> TokenMetrics:
        """Compute the scores of all texts.  Raises: DataError if no token has a label."""
        loss, tokens, hits = rows[0].unbind(1)
        if not bool(tokens.any()):
            subject = "evaluation texts"
            fix = "Label the answers; -100 is for what is not to be predicted."
            raise DataError(subject, got="no token that has a label", want="at least one", fix=fix)
        has_labels = tokens > 0
        return TokenMetrics(
            loss=float(loss.sum() / tokens.sum()),
            accuracy=float(hits.sum() / tokens.sum()),
            exact_match=float((hits == tokens)[has_labels].double().mean()),
            tokens=int(tokens.sum()),
            rows=rows[0],
        )
