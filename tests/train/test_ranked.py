"""Measures of rankings: by hand on two queries, and what is missing counts nothing."""

from __future__ import annotations

import math

import pytest

from intarsia.core.errors import ConfigError, DataError
from intarsia.train.ranked import by_query, run_lines, score_run

from ..refusals import refused

QRELS = {"a": {"x": 1, "y": 0, "z": 1}, "b": {"y": 1}, "c": {"x": 1}}
RUN = {"a": {"x": 3.0, "y": 2.0, "z": 1.0}, "b": {"x": 2.0, "y": 1.0}}


def test_measures_are_their_definitions() -> None:
    pytest.importorskip("ir_measures")
    measures = by_query(QRELS, RUN)
    ideal = 1 + 1 / math.log2(3)
    assert measures["nDCG@10"] == pytest.approx([(1 + 1 / 2) / ideal, 1 / math.log2(3), 0])
    assert measures["RR@10"] == pytest.approx([1, 0.5, 0])
    assert measures["R@100"] == pytest.approx([1, 1, 0])
    assert measures["Success@20"] == pytest.approx([1, 1, 0])
    assert score_run(QRELS, RUN, ["RR@10"])["RR@10"] == pytest.approx(0.5)


def test_what_cannot_be_measured_is_refused() -> None:
    pytest.importorskip("ir_measures")
    with refused(ConfigError, what="measure", got="'nope@@'"):
        score_run(QRELS, RUN, ["nope@@"])
    with refused(DataError, what="judgements", got="none"):
        score_run({}, RUN)


def test_a_run_is_written_best_first() -> None:
    assert run_lines({"q": {"a": 1.0, "b": 2.0}}, "t") == ["q Q0 b 1 2 t", "q Q0 a 2 1 t"]
