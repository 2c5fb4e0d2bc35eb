"""Each paper's figure next to its target and the paper's own effect, as a plot of dots.

A row is a paper. Its units are its own, so that each row has its own scale, on which the target
stands at the line in the middle and the side on which the claim holds lies to the right: an
interval to the right of the line holds, one to the left fails, one that crosses it is not decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, ROW, TOP = 360, 24, 46  # in units of about a pixel on a telephone of 390 pixels
LEFT, RIGHT = 132, 352  # ends of every row's scale
MIDDLE, HALF = (LEFT + RIGHT) / 2, (RIGHT - LEFT) / 2
NAME = 21  # letters that fit next to the scale


class EvidenceRow(NamedTuple):
    """A paper's name, its verdict in a word, and its figures, in the unit of its claim.

    sense: of the target.  interval, effect, effect_interval: None where there is none.
    """

    name: str
    word: str
    sense: str
    target: float
    figure: float | None
    interval: tuple[float, float] | None
    effect: float | None = None
    effect_interval: tuple[float, float] | None = None

    def to_the_right(self, value: float) -> float:
        """Return how far a value lies on the side on which the claim holds, in the claim's unit."""
        if self.sense == "within":
            return self.target - abs(value)
        return value - self.target if self.sense == ">=" else self.target - value


def evidence_plot(rows: Sequence[EvidenceRow]) -> str:
    """Return a plot of all papers' figures next to their targets, as SVG inside an HTML figure.

    rows: one for each paper, from top to bottom. Its colours are the page's, light or dark.
    """
    height = TOP + ROW * len(rows) + 8
    label = "Figures of all papers' headlines next to their targets and the papers' own effects"
    lines = [
        '<figure class="drawing evidence">',
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">',
        f'<text class="soft" x="{MIDDLE - HALF / 2:g}" y="14">fails</text>',
        f'<text class="soft" x="{MIDDLE:g}" y="14">target</text>',
        f'<text class="soft" x="{MIDDLE + HALF / 2:g}" y="14">holds</text>',
        *_legend(),
        f'<path class="line" d="M{MIDDLE:g} {TOP - 8}V{height}"/>',
    ]
    # one row under the other, each around the line of its target
    for number, row in enumerate(rows):
        lines += _row(row, TOP + ROW * number + ROW / 2)
    return "\n".join([*lines, "</svg>", "</figure>"])


def _legend() -> list[str]:
    """Return the SVG of the legend: our figure with its interval, and the paper's own effect."""
    y = 30
    return [
        f'<g class="holds">{_mark("holds", 10, y)}</g>',
        f'<text class="soft left" x="18" y="{y + 4}">ours, 95 % interval</text>',
        f'<path class="paper" d="{_diamond(LEFT + 50, y)}"/>',
        f'<text class="soft left" x="{LEFT + 60}" y="{y + 4}">the paper\'s own effect</text>',
    ]


def _row(row: EvidenceRow, y: float) -> Iterable[str]:
    """Yield the SVG of one claim: name, the paper's effect and our figure."""
    name = row.name if len(row.name) <= NAME else row.name[: NAME - 1] + "…"
    title = escape(f"{row.name}: {row.word}")
    yield f'<g class="{row.word.replace(" ", "-")}"><title>{title}</title>'
    yield f'<text class="left" x="4" y="{y + 4:g}">{escape(name)}</text>'
    # the paper's effect first, so that our own figure lies on top
    places = _places(row)
    for kind in ("effect", "ours"):
        if kind in places:
            yield from _bar(kind, row.word, *places[kind], y)
    if row.figure is None:
        yield f'<text class="soft left" x="{MIDDLE + 8:g}" y="{y + 4:g}">not run</text>'
    yield "</g>"


def _places(row: EvidenceRow) -> dict[str, tuple[float, float, float]]:
    """Return where a row's figures and the ends of their intervals lie, in pixels from the left."""
    values: dict[str, tuple[float, float, float]] = {}
    for kind, point, ends in (
        ("ours", row.figure, row.interval),
        ("effect", row.effect, row.effect_interval),
    ):
        # a figure that is not a number has no place
        if point is not None and math.isfinite(point):
            low, high = ends or (point, point)
            # an interval around 0 of a tie reaches as far right as 0 itself lies
            ends_of_row = [row.to_the_right(v) for v in (low, high, max(low, min(0.0, high)))]
            last = 3 if row.sense == "within" else 2
            span = min(ends_of_row), max(ends_of_row[:last])
            values[kind] = (row.to_the_right(point), *span)
    # the farthest value stands at the end of the scale; if all values of a row are the target, it
    # is in the middle
    farthest = max((abs(v) for group in values.values() for v in group), default=0.0) or 1.0
    scale = 0.94 * HALF / farthest

    def placed(value: float) -> float:
        """Return the pixel of a distance from the target."""
        return MIDDLE + scale * value

    return {kind: (placed(p), placed(a), placed(b)) for kind, (p, a, b) in values.items()}


def _bar(kind: str, word: str, x: float, low: float, high: float, y: float) -> Iterable[str]:
    """Yield the SVG of a figure and its interval."""
    if kind == "effect":
        # without an interval the point stands alone
        if high > low:
            yield f'<path class="paper" d="M{low:.1f} {y - 6:g}H{high:.1f}"/>'
        yield f'<path class="paper" d="{_diamond(x, y - 6)}"/>'
        return
    if high > low:
        yield f'<path class="interval" d="M{low:.1f} {y:g}H{high:.1f}"/>'
    yield _mark(word, x, y)


def _mark(word: str, x: float, y: float) -> str:
    """Return the mark of a verdict, which no two share: colours alone are not for everybody."""
    if word == "holds":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:g}" r="4"/>'
    if word == "fails":
        return f'<path class="mark" d="M{x - 4:.1f} {y - 4:g}h8v8h-8z"/>'
    if word == "not reproduced at this scale":
        return f'<path class="hollow" d="M{x - 4:.1f} {y - 4:g}h8v8h-8z"/>'
    if word == "withdrawn":
        return f'<path class="cross" d="M{x - 5:.1f} {y:g}h10"/>'
    if word == "void":
        cross = f"M{x - 4:.1f} {y - 4:g}l8 8m-8 0l8 -8"
        return f'<path class="cross" d="{cross}"/>'
    return f'<circle class="hollow" cx="{x:.1f}" cy="{y:g}" r="3.5"/>'


def _diamond(x: float, y: float) -> str:
    """Return the SVG path of a diamond around a point, in pixels."""
    return f"M{x:.1f} {y - 4.5:g}l4.5 4.5l-4.5 4.5l-4.5 -4.5z"
