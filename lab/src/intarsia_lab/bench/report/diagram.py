"""The critical-difference diagram: average ranks on a line, bars over what does not differ.

Coordinates only; the page draws them as SVG, so that it prints and needs no script.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .summary import Findings, MethodRow

WIDTH, LEFT, RIGHT = 760.0, 190.0, 570.0  # of the picture; the axis from ... to
AXIS, FIRST, STEP, BAR = 62.0, 30.0, 24.0, 9.0


@dataclass(frozen=True)
class Mark:
    """A method: x of its rank, y of its label, the side the label is on, and its row's number."""

    x: float
    y: float
    left: bool
    label: str
    rank: float
    row: int


@dataclass(frozen=True)
class Diagram:
    """Places in a picture WIDTH wide: ticks and marks, bars as (x, x, y), the critical length."""

    height: float
    ticks: tuple[tuple[float, int], ...]
    marks: tuple[Mark, ...]
    bars: tuple[tuple[float, float, float], ...]
    critical: float
    span: float


def diagram(findings: Findings) -> Diagram | None:
    """None where there is no ranking: fewer than three methods, or two shared tasks."""
    found = findings.ranking
    if found is None:
        return None
    rows = [(row.rank, i, row) for i, row in enumerate(findings.rows) if row.rank is not None]
    rows.sort(key=lambda entry: entry[:2])
    last = len(rows)
    scale = (RIGHT - LEFT) / (last - 1)

    def place(rank: float) -> float:
        return LEFT + (rank - 1) * scale

    ordered = [rank for rank, _, _ in rows]
    # a bar reaches a little beyond its ends, so that it is seen where two ranks are equal
    bars = tuple(
        (place(ordered[first]) - 4, place(ordered[final]) + 4, AXIS + BAR * (i + 1))
        for i, (first, final) in enumerate(found.cliques)
    )
    top = AXIS + BAR * len(bars) + FIRST
    half = math.ceil(last / 2)
    marks = tuple(
        _mark(n, half, last, top, place(rank), i, row) for n, (rank, i, row) in enumerate(rows)
    )
    ticks = tuple((place(rank), rank) for rank in range(1, last + 1))
    height = top + STEP * (half - 1) + 14
    return Diagram(height, ticks, marks, bars, found.critical, found.critical * scale)


def _mark(n: int, half: int, last: int, top: float, x: float, number: int, row: MethodRow) -> Mark:
    """The better half is labelled on the left from the top, the other on the right from below."""
    left = n < half
    y = top + STEP * (n if left else last - 1 - n)
    assert row.rank is not None
    return Mark(x, y, left, row.method.label, row.rank, number)
