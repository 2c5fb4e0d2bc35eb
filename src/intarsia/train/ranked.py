"""How good is a ranking? trec_eval's measures, by ir-measures, for retrieval and recommendation.

A user is a query, an item a document: nDCG@10, R@100 (recall), RR@10 (reciprocal rank), Success@20
(hit rate). Measures are named as ir-measures names them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.errors import ConfigError, DataError, MissingExtra

Qrels = Mapping[str, Mapping[str, int]]  # query -> document -> grade
Run = Mapping[str, Mapping[str, float]]  # query -> document -> score, larger is better
MEASURES = ("nDCG@10", "R@100", "RR@10", "Success@20")


def score_run(qrels: Qrels, run: Run, measures: Sequence[str] = MEASURES) -> dict[str, float]:
    """Return the mean of each measure of a ranking over the queries of `qrels`.

    qrels: query -> document -> grade; run: query -> document -> score, larger is better; a query
      that it lacks counts 0.
    Raises: as `by_query`.
    """
    return {name: float(values.mean()) for name, values in by_query(qrels, run, measures).items()}


def by_query(qrels: Qrels, run: Run, measures: Sequence[str] = MEASURES) -> dict[str, np.ndarray]:
    """Return each measure of a ranking for each query of `qrels`: name -> (queries,).

    qrels: query -> document -> grade; run: query -> document -> score, larger is better. Equal
      scores are ordered by the document's id, as trec_eval does.
    Raises: MissingExtra without ir-measures; ConfigError for an unknown measure; DataError without
      any query.
    """
    if not qrels:
        fix = "Give it queries with judgements."
        raise DataError("judgements", got="none", want="at least one query", fix=fix)
    library = _library()
    # measures are parsed first, so that a wrong name costs no work
    parsed = {_measure(library, name): name for name in measures}
    place = {query: i for i, query in enumerate(qrels)}
    # a query without a ranking counts 0
    values = {name: np.zeros(len(place)) for name in measures}
    judged = {query: dict(grades) for query, grades in qrels.items()}
    ranked = {query: dict(run[query]) for query in qrels if query in run}
    for result in library.iter_calc(list(parsed), judged, ranked):
        values[parsed[result.measure]][place[result.query_id]] = result.value
    return values


def run_lines(run: Run, tag: str = "intarsia") -> list[str]:
    """Return a ranking as lines of TREC's format: query Q0 document rank score tag."""
    lines: list[str] = []
    for query, scores in run.items():
        order = sorted(scores.items(), key=lambda row: -row[1])
        lines += [f"{query} Q0 {d} {i} {s:.6g} {tag}" for i, (d, s) in enumerate(order, 1)]
    return lines


@functools.cache
def _library() -> Any:
    """Import ir_measures.  Raises: MissingExtra if it is not installed."""
    try:
        import ir_measures
    except ImportError as error:
        raise MissingExtra("ir-measures", "rec") from error
    return ir_measures


def _measure(library: Any, name: str) -> Any:
    """Parse a measure's name, such as "nDCG@10"."""
    try:
        return library.parse_measure(name)
    except (ValueError, NameError) as error:
        fix = "See the list of ir-measures, as AP, P@5, nDCG@10."
        raise ConfigError("measure", got=repr(name), want=str(MEASURES), fix=fix) from error
