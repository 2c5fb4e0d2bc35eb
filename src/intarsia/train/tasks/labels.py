"""Several labels at once: each is there or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score, label_ranking_average_precision_score
from torch import Tensor

from ...core.errors import DataError
from ..order import Batch, Inputs
from ..outcome import TargetLoss, wide
from ..scores import Named
from .task import Task, refuse_output


@dataclass(frozen=True)
class MultiLabel(Task):
    """Binary cross-entropy, the mean over samples and labels.

    Targets are rows of 0 and 1, (B, L); outputs are logits of the same shape. Scores: `loss`, and
    scikit-learn's `mean_average_precision` (over the labels that occur), `ranking_precision`
    (label_ranking_average_precision_score) and `f1` (macro, at a probability of one half).
    """

    def batch(self, inputs: Inputs, target: Any) -> Batch:
        """Return the inputs, and the target (B, labels), 0 or 1, as floats.  Raises: DataError."""
        target = torch.as_tensor(target)
        if target.ndim != 2 or not bool(((target == 0) | (target == 1)).all()):
            got = f"{target.dtype} of shape {tuple(target.shape)}"
            fix = "Give one number for each label, 1 where it applies."
            raise DataError("labels", got=got, want="a row of 0 and 1 for each sample", fix=fix)
        return inputs, target.to(torch.float32)

    def seen(self, output: Tensor, batch: Batch) -> MultiLabel:
        if output.shape != batch[1].shape:
            refuse_output(output, batch[1], "one logit for each label, (samples, labels)")
        return self

    def loss_of(self, batch: Batch) -> TargetLoss:
        return TargetLoss(_binary, batch[1], divergence=_binary_kl)

    def scores(self, *rows: Tensor) -> Named:
        """Compute a set's scores, means over the labels.  Raises: DataError if no label occurs."""
        logits, target = rows
        # the precision of a label that no sample has is not defined
        occur = target.any(0).numpy()
        if not occur.any():
            subject, got = "evaluation labels", "no 1"
            raise DataError(subject, got=got, want="at least one", fix="Label some samples.")
        y, z = target.numpy(), logits.numpy()
        # a label at a time: scikit-learn takes a single one for two classes
        f1 = [_f1(y[:, i], z[:, i] > 0) for i in range(y.shape[1])]
        values = {
            "loss": float(_binary(logits.double(), target)),
            "mean_average_precision": average_precision_score(y[:, occur], z[:, occur]),
            "ranking_precision": label_ranking_average_precision_score(y, z),
            "f1": sum(f1) / len(f1),
        }
        values = {name: float(value) for name, value in values.items()}
        return Named(values, "mean_average_precision", {"logits": logits, "labels": target})


def _f1(truth: np.ndarray, guess: np.ndarray) -> float:
    return float(f1_score(truth, guess, zero_division=0.0))  # pyright: ignore[reportArgumentType]


def _binary(logits: Tensor, target: Tensor) -> Tensor:
    logits = wide(logits)
    return F.binary_cross_entropy_with_logits(logits, target.to(logits))


def _binary_kl(target: Tensor, logits: Tensor, *, detach: bool = True) -> Tensor:
    """Compute the KL divergence of independent labels: the mean over labels of sum p log(p / q)."""
    target = target.detach() if detach else target
    p = target.sigmoid()
    present = p * (F.logsigmoid(target) - F.logsigmoid(logits))
    absent = (1 - p) * (F.logsigmoid(-target) - F.logsigmoid(-logits))
    return (present + absent).mean()
