"""Posting lists give what the product of matrices gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.areas.search.postings import STORED, Postings, best, merge_postings, search_naive
from intarsia.core.errors import CheckpointError

from ...refusals import refused

Drawn = tuple[Any, list[tuple[int, float]]]


@st.composite
def drawn(draw: Any) -> Drawn:
    """A matrix of few values, so that scores tie, and a query of distinct tokens."""
    documents, tokens = draw(st.integers(0, 12)), draw(st.integers(1, 6))
    values = st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, 3.0])
    rows = draw(st.lists(values, min_size=documents * tokens, max_size=documents * tokens))
    tokens_of_row = draw(st.lists(st.integers(0, tokens - 1), unique=True))
    query = [(token, draw(st.sampled_from([0.5, 1.0, 2.0]))) for token in tokens_of_row]
    return sp.csr_matrix(np.array(rows, np.float32).reshape(documents, tokens)), query


@settings(deadline=None)
@given(drawn(), st.integers(1, 15))
def test_a_search_is_the_naive_one(case: Drawn, k: int) -> None:
    rows, query = case
    lists = Postings.of(rows)
    scores = lists.scores(query)
    hits = [(int(i), float(scores[i])) for i in best(scores, k)]
    assert hits == search_naive(rows, query, k)  # values of few bits: sums are exact


@settings(deadline=None)
@given(drawn())
def test_the_scores_of_some_are_those_among_all(case: Drawn) -> None:
    rows, query = case
    lists = Postings.of(rows)
    docs = np.arange(0, rows.shape[0], 2)
    assert (lists.scores_of(query, docs) == lists.scores(query)[docs]).all()


@settings(deadline=None)
@given(drawn(), st.sampled_from(STORED))
def test_what_is_written_is_read(case: Drawn, stored: str) -> None:
    lists = Postings.of(case[0])
    again = Postings.decode(lists.encode(stored), lists.count)
    assert (again.starts == lists.starts).all() and (again.docs == lists.docs).all()
    # a code is at most half a step of a 255th of its list's largest weight away
    step = 3.0 / 510 if stored == "uint8" else 0
    assert np.abs(again.weights - lists.weights).max(initial=0) <= step + 1e-6


def test_a_weight_below_half_a_step_keeps_its_posting() -> None:
    lists = Postings.of(sp.csr_matrix(np.array([[3.0], [1e-3]], np.float32)))
    again = Postings.decode(lists.encode("uint8"), lists.count)
    np.testing.assert_allclose(again.weights, [3, 3 / 255], rtol=1e-6)


@settings(deadline=None)
@given(drawn(), drawn())
def test_merged_lists_are_those_of_all_rows(first: Drawn, second: Drawn) -> None:
    tokens = min(first[0].shape[1], second[0].shape[1])
    parts = [first[0][:, :tokens], second[0][:, :tokens]]
    mask = np.arange(parts[1].shape[0]) % 2 == 0
    got = merge_postings([Postings.of(part) for part in parts], [None, mask])
    want = sp.vstack([parts[0], parts[1][mask]])
    assert got.count == want.shape[0] and (got.matrix() != want).nnz == 0


def test_weights_beyond_half_precision_are_kept_in_range() -> None:
    lists = Postings.of(sp.csr_matrix(np.array([[1e-12, 1e9]], np.float32)))
    again = Postings.decode(lists.encode("float16"), 1)
    assert (again.weights > 0).all() and np.isfinite(again.weights).all()


def test_what_is_no_positive_number_is_left_out() -> None:
    lists = Postings.of(np.array([[np.nan, -1.0, 0.0, 2.0]], np.float32))
    assert lists.frequencies().tolist() == [0, 0, 0, 1]


GOOD = Postings.of(np.array([[1.0, 2.0], [0.5, 0.0]])).encode("float32")


@pytest.mark.parametrize(
    "change",
    [
        {"starts": np.array([1, 2, 3])},
        {"starts": np.array([0, 3, 2])},
        {"starts": GOOD["starts"].astype(np.int32)},
        {"docs": np.array([1, 0, 0], np.int32)},
        {"docs": np.array([0, 9, 0], np.int32)},
        {"docs": np.array([0, -1, 0], np.int32)},
        {"weights": np.array([1, np.nan, 2], np.float32)},
        {"weights": np.array([1, -1, 2], np.float32)},
        {"weights": np.array([1, 2], np.float32)},
        {"weights": np.array([1, 2, 3], np.uint8)},
    ],
    ids=["start", "back", "type", "order", "far", "below", "nan", "minus", "short", "scales"],
)
def test_damaged_lists_are_refused(change: dict[str, Any]) -> None:
    assert Postings.decode(dict(GOOD), 2).count == 2
    with refused(CheckpointError, what="posting lists"):
        Postings.decode(GOOD | change, 2)
    with pytest.raises(CheckpointError):
        Postings.decode({"starts": GOOD["starts"]}, 2)
