"""Confusion counts: nothing lost when classes are joined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from intarsia.reports.runs import comparison_of, gather
from intarsia.reports.runs.confusion import _joined, confusion_of
from intarsia.reports.runs.reading import Predictions


def answers(classes: int, n: int, seed: int) -> Predictions:
    generator = np.random.default_rng(seed)
    labels, predicted = generator.integers(0, classes, (2, n))
    return Predictions(labels, predicted, tuple(f"c{i}" for i in range(classes)))


@given(st.integers(1, 12), st.integers(2, 8), st.integers(1, 60), st.integers(0, 99))
def test_every_answer_is_counted_once(classes: int, limit: int, n: int, seed: int) -> None:
    matrix = _joined([answers(classes, n, seed), answers(classes, n, seed + 1)], limit)
    assert matrix.counts.sum() == 2 * n
    assert len(matrix.classes) == len(matrix.counts) == min(classes, limit)
    assert matrix.joined == (classes - limit + 1 if classes > limit else 0)
    # joining only ever hides mistakes among the joined classes
    right = sum(int((a.labels == a.predicted).sum()) for a in map(
        lambda s: answers(classes, n, s), (seed, seed + 1)))  # fmt: skip
    assert np.trace(matrix.counts) >= right


def test_rows_are_true_and_columns_predicted() -> None:
    matrix = _joined([Predictions(np.array([0, 0, 1]), np.array([1, 1, 1]), ("a", "b", "c"))], 9)
    assert matrix.counts.tolist() == [[0, 2, 0], [0, 1, 0], [0, 0, 0]]
    assert matrix.shares.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]  # an empty row is no NaN


def test_the_classes_that_are_mixed_up_most_stay() -> None:
    labels = np.array([0, 1, 2, 3, 3, 3, 1, 1])
    predicted = np.array([0, 1, 2, 3, 1, 1, 3, 1])
    matrix = _joined([Predictions(labels, predicted, ("a", "b", "c", "d"))], 3)
    assert matrix.classes == ("b", "d", "2 other classes")
    assert matrix.counts.tolist() == [[2, 1, 0], [2, 1, 0], [0, 0, 2]]


def test_seeds_are_added_up(runs: Path) -> None:
    matrix = confusion_of(comparison_of(gather([runs])).groups[0])
    assert matrix is not None
    assert matrix.runs == 3 and matrix.counts.sum() == 3 * 160


def test_a_group_without_all_predictions_has_none(tmp_path: Path, runs: Path) -> None:
    read = gather([runs / "mosa-0", runs / "mosa-1"])
    (group,) = comparison_of(read).groups
    assert confusion_of(group) is not None
    object.__setattr__(read[0], "answers", None)
    assert confusion_of(group) is None
