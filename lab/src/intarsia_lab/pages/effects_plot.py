"""Each paper's effect and ours in one row, as a plot of dots, where both have the same unit.

Rows have units of their own, so that each has its own scale: no effect stands at the line in the
middle, and the side on which the paper's effect is lies to the right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, ROW, TOP = 360, 24, 40  # in units of about a pixel on a telephone of 390 pixels
LEFT, RIGHT = 132, 352  # ends of every row's scale
MIDDLE, HALF = (LEFT + RIGHT) / 2, (RIGHT - LEFT) / 2
REACH = 0.9  # of half a scale, to the farthest of a row's values
NAME = 20  # letters that fit next to the scale


class EffectRow(NamedTuple):
    """A paper's name, the word on it, and both effects in the unit of the experiment.

    sign: of the paper's effect.  null: the value if nothing differed.  paper: one value, or the
    least and the largest.
    """

    name: str
    word: str
    sign: int
    null: float
    value: float
    interval: tuple[float, float] | None
    paper: tuple[float, ...]


def effects_plot(rows: Sequence[EffectRow]) -> str:
    """Return a plot of effects, one row for each paper, as SVG inside an HTML figure."""
    height = TOP + ROW * len(rows) + 8
    lines = [
        '<figure class="drawing effects">',
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Effects here and there">',
        f'<circle class="mark" cx="10" cy="12" r="4"/>{_text(18, 12, "here")}',
        f'<path class="paper" d="{_diamond(60, 12)}"/>{_text(68, 12, "the paper")}',
        _text(MIDDLE + 4, 30, "the paper's side"),
        f'<path class="line" d="M{MIDDLE:g} {TOP - 6}V{height}"/>',
    ]
    for count, row in enumerate(rows):
        lines += _row(row, TOP + ROW * count + ROW / 2)
    return "\n".join([*lines, "</svg>", "</figure>"])


def _row(row: EffectRow, y: float) -> Iterable[str]:
    """Yield the SVG of one paper: its name, its effect and ours."""
    name = row.name if len(row.name) <= NAME else row.name[: NAME - 1] + "…"
    yield f'<g class="{row.word.replace(" ", "-")}"><title>{escape(row.name)}</title>'
    yield f'<path class="scale" d="M{LEFT} {y:g}H{RIGHT}"/>'
    yield _text(4, y, name, "left")
    ends = [*row.paper, row.value, *(row.interval or ())]
    farthest = max(abs(value - row.null) for value in ends) or 1.0

    def place(value: float) -> float:
        """Return the pixel of a value; the paper's side lies to the right."""
        return MIDDLE + REACH * HALF * row.sign * (value - row.null) / farthest

    # the paper's first, so that ours lies on top
    if len(row.paper) > 1:
        first, last = sorted(map(place, row.paper))
        yield f'<path class="paper" d="M{first:.1f} {y - 6:g}H{last:.1f}"/>'
    for value in row.paper:
        yield f'<path class="paper" d="{_diamond(place(value), y - 6)}"/>'
    if row.interval is not None:
        low, high = sorted(map(place, row.interval))
        yield f'<path class="interval" d="M{low:.1f} {y:g}H{high:.1f}"/>'
    yield f'<circle class="mark" cx="{place(row.value):.1f}" cy="{y:g}" r="4"/></g>'


def _text(x: float, y: float, text: str, kind: str = "soft left") -> str:
    """Return the SVG of words that begin at x."""
    return f'<text class="{kind}" x="{x:g}" y="{y + 4:g}">{escape(text)}</text>'


def _diamond(x: float, y: float) -> str:
    """Return the SVG path of a diamond around a point, in pixels."""
    return f"M{x:.1f} {y - 4.5:g}l4.5 4.5l-4.5 4.5l-4.5 -4.5z"
