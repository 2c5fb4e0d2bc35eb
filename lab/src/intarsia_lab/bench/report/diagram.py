"""The critical-difference diagram: average ranks on a line, bars over what does not differ.

Coordinates first, then SVG that prints and needs no script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from intarsia.reports.looks import MARKS, Look

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
    """Lay out the critical-difference diagram: average ranks on a line, bars over equal ones.

    A bar joins methods with ranks that do not differ significantly. findings: statistics of a
    benchmark's sheet. None with fewer than three methods or two tasks that all have.
    """
    ranking = findings.ranking
    if ranking is None:
        return None
    rows = [(row.rank, i, row) for i, row in enumerate(findings.rows) if row.rank is not None]
    rows.sort(key=lambda entry: entry[:2])
    last = len(rows)
    # ranks 1 ... last fill the axis
    scale = (RIGHT - LEFT) / (last - 1)

    def place(rank: float) -> float:
        """Return the x of a rank, in pixels."""
        return LEFT + (rank - 1) * scale

    ordered = [rank for rank, _, _ in rows]
    # a bar reaches a little beyond its ends, so that it is seen where two ranks are equal
    bars = tuple(
        (place(ordered[first]) - 4, place(ordered[final]) + 4, AXIS + BAR * (i + 1))
        for i, (first, final) in enumerate(ranking.cliques)
    )
    # labels begin below the last bar
    top = AXIS + BAR * len(bars) + FIRST
    # the better half of the methods is labelled on the left
    half = math.ceil(last / 2)
    marks = tuple(
        _mark(n, half, last, top, place(rank), i, row) for n, (rank, i, row) in enumerate(rows)
    )
    ticks = tuple((place(rank), rank) for rank in range(1, last + 1))
    height = top + STEP * (half - 1) + 14
    return Diagram(height, ticks, marks, bars, ranking.critical, ranking.critical * scale)


def _mark(n: int, half: int, last: int, top: float, x: float, number: int, row: MethodRow) -> Mark:
    """Return a method's mark and label in the diagram of ranks."""
    on_left = n < half
    y = top + STEP * (n if on_left else last - 1 - n)
    assert row.rank is not None
    return Mark(x, y, on_left, row.method.label, row.rank, number)


class RankDrawing(NamedTuple):
    """A diagram and the looks of its rows, to be drawn."""

    diagram: Diagram
    looks: Sequence[Look]

    def svg(self, label: str) -> str:
        """Return the drawing as SVG.  label: text for screen readers."""
        ranks = self.diagram
        # pixels of the first and the last rank
        start, end = ranks.ticks[0][0], ranks.ticks[-1][0]
        size = (
            f'viewBox="0 0 {WIDTH:g} {ranks.height:g}" width="{WIDTH:g}" height="{ranks.height:g}"'
        )
        ticks = "".join(f"M{x:.1f} 52v-6" for x, _ in ranks.ticks)
        parts = [
            f'<svg class="ranks" {size} role="img" aria-label="{escape(label)}">',
            f'<path class="critical" d="M{start} 10v8M{start} 14h{ranks.span:.1f}m0-4v8"/>',
            f'<text class="soft" x="{start + ranks.span + 8:.1f}" y="18">critical difference '
            f"{ranks.critical:.2f}</text>",
            f'<path class="axis" d="M{start} 52H{end:.1f}{ticks}"/>',
        ]
        # the axis with its ticks, then methods, then the bars over them
        for x, rank in ranks.ticks:
            parts.append(
                f'<text class="soft" x="{x:.1f}" y="40" text-anchor="middle">{rank}</text>'
            )
        for mark in ranks.marks:
            parts += _drawn_mark(mark, self.looks[mark.row])
        parts += [
            f'<path class="bar" d="M{x:.1f} {y:g}H{end_x:.1f}"/>' for x, end_x, y in ranks.bars
        ]
        return "".join([*parts, "</svg>"])


def _drawn_mark(mark: Mark, look: Look) -> tuple[str, str, str]:
    """Return the SVG of a method in the diagram: line to its label, mark, and label."""
    side = 182.0 if mark.left else WIDTH - 182
    words = [mark.label, f"{mark.rank:.2f}"]
    text = escape("  ".join(words if mark.left else words[::-1]))
    anchor, x = ("end", side - 6) if mark.left else ("start", side + 6)
    return (
        f'<path class="lead" d="M{mark.x:.1f} 52V{mark.y:g}H{side:g}"/>',
        f'<path class="c{look.color}" fill="currentColor" d="{MARKS[look.symbol]}" '
        f'transform="translate({mark.x - 6:.1f} 46) scale(.75)"/>',
        f'<text x="{x:g}" y="{mark.y + 4:g}" text-anchor="{anchor}">{text}</text>',
    )
