"""Answers to test items, which are stored as text, so that an interval is over items, too."""

from __future__ import annotations

import numpy as np
from torch import nn
from torch.utils.data import TensorDataset

from intarsia.train import predict


def answers(model: nn.Module, rows: TensorDataset, batch_size: int = 512) -> str:
    """Return a mark for each labelled row, 1 where the model is right and 0 where it is wrong.

    rows: inputs and labels of classes; batch_size: of the evaluation.
    """
    logits, labels = predict(model, rows, batch_size=batch_size)
    return "".join(map(str, (logits.argmax(1) == labels).int().tolist()))


def points(marks: str) -> np.ndarray:
    """Return the accuracy of each item in points, (items,), 100 or 0.  marks: see `answers`."""
    return 100.0 * (np.frombuffer(marks.encode(), np.uint8) == ord("1"))


def accuracy(marks: str) -> float:
    """Return the share of right answers in points.  marks: see `answers`."""
    return float(points(marks).mean())
