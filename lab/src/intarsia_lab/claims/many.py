"""How many of many claims chance alone would put on one side of their targets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from intarsia.reports.statistics import ALPHA, holm

from ..kit import Result, Study


def p_value(study: Study, result: Result) -> float | None:
    """Return the two-sided p that a figure lies where its target is, by its interval.

    None for a single value, and for an interval without ends. Of a tie the nearer target counts.
    """
    from scipy.stats import t

    low, high = result.interval
    freedom = len(result.values) - 1
    if freedom < 1 or not math.isfinite(high - low):
        return None
    got = abs(result.got) if study.sense == "within" else result.got
    distance, half = abs(got - study.target), (high - low) / 2
    if half == 0:
        return float(distance == 0)
    return float(2 * t.sf(distance / half * t.ppf(1 - ALPHA / 2, freedom), freedom))


def on_one_side(judged: Sequence[tuple[Study, Result]]) -> tuple[int, int, int]:
    """Return how many claims have a p, how many lie on one side of their target, and after Holm.

    judged: claims and results; at 5 % each, and at 5 % for all of them together.
    """
    p = [value for pair in judged if (value := p_value(*pair)) is not None]
    corrected = [value for value in holm(p) if value is not None]
    return len(p), sum(value < ALPHA for value in p), sum(value < ALPHA for value in corrected)
