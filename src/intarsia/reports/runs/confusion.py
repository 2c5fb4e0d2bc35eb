"""Confusion matrices: which class was taken for which, over all seeds of a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .grouping import RunGroup
from .reading import Predictions

SHOWN = 30  # classes that a reader can still tell apart


@dataclass(frozen=True, eq=False)
class Confusion:
    """counts[i, j] pictures of class i taken for class j, summed over `runs` runs.

    With more classes than can be shown, those that are mixed up most often stay and the others are
    joined in the last, so that nothing is left out of the sum.
    """

    classes: tuple[str, ...]
    counts: np.ndarray
    runs: int
    joined: int  # classes in the last row, 0 = it is a class of its own

    @property
    def shares(self) -> np.ndarray:
        """Rows divided by their sums; a row without pictures stays 0."""
        total = self.counts.sum(1, keepdims=True)
        return self.counts / np.maximum(total, 1)


def confusion_of(group: RunGroup, limit: int = SHOWN) -> Confusion | None:
    """Add up the confusion matrices of a group's runs.

    limit: the most classes to show; those that are confused least are joined into the last row and
      column. Returns None if a run stored no predictions, or if the runs have different classes.
    """
    answers = [run.answers for run in group.runs if run.answers is not None]
    if len(answers) != len(group.runs) or len({a.classes for a in answers}) != 1:
        return None
    return _joined(answers, limit)


def _joined(answers: Sequence[Predictions], limit: int) -> Confusion:
    """Add up the confusion counts of several runs, and join the classes beyond a limit."""
    classes = answers[0].classes
    # one count for each picture of each run, at (its class, the class it was taken for)
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for predictions in answers:
        np.add.at(counts, (predictions.labels, predictions.predicted), 1)
    if len(classes) <= limit:
        return Confusion(classes, counts, len(answers), 0)
    # too many classes to show: keep those with most mistakes, as either class of a pair
    wrong = counts - np.diag(np.diag(counts))
    # stable, so that classes without a mistake keep their order
    order = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")
    shown_classes = np.sort(order[: limit - 1])
    # the new row of each class; all that are not kept share the last one
    place = np.full(len(classes), limit - 1)
    place[shown_classes] = np.arange(limit - 1)
    small = np.zeros((limit, limit), dtype=counts.dtype)
    np.add.at(small, (place[:, None], place[None, :]), counts)
    joined = len(classes) - len(shown_classes)
    names = (*(classes[i] for i in shown_classes), f"{joined} other classes")
    return Confusion(names, small, len(answers), joined)
