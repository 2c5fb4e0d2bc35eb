"""Each paper's figure next to its target and the paper's own effect, as a plot of dots.

A row is a paper. Its units are its own, so that each row has its own scale, on which the target
stands at the line in the middle and the side on which the claim holds lies to the right: an
interval to the right of the line holds, one to the left fails, one that crosses it is not decided.
An arrow stands where an interval leaves the scale of its row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, ROW, TOP = 360, 24, 78  # in units of about a pixel on a telephone of 390 pixels
LEFT, RIGHT = 132, 352  # ends of every row's scale
MIDDLE, HALF = (LEFT + RIGHT) / 2, (RIGHT - LEFT) / 2
NAME = 20  # letters that fit next to the scale
REACH = 0.88  # of half a scale, to the farthest of a row's figures
MARKS = ("holds", "not decided", "fails", "not reproduced at this scale", "void", "withdrawn")


class EvidenceRow(NamedTuple):
    """A paper's name, its verdict in a word, and its figures, in the unit of its claim.

    sense: of the target.  interval, effect, effect_interval: None where there is none.  counted:
    False for a figure of older code or of changes that were not committed, which is drawn in grey.
    """

    name: str
    word: str
    sense: str
    target: float
    figure: float | None
    interval: tuple[float, float] | None
    effect: float | None = None
    effect_interval: tuple[float, float] | None = None
    counted: bool = True

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
        *_legend(),
        f'<text class="soft" x="{MIDDLE - HALF / 2:g}" y="{TOP - 12}">fails</text>',
        f'<text class="soft" x="{MIDDLE:g}" y="{TOP - 12}">target</text>',
        f'<text class="soft" x="{MIDDLE + HALF / 2:g}" y="{TOP - 12}">holds</text>',
        f'<path class="line" d="M{MIDDLE:g} {TOP - 8}V{height}"/>',
    ]
    # one row under the other, each around the line of its target
    for number, row in enumerate(rows):
        lines += _row(row, TOP + ROW * number + ROW / 2)
    return "\n".join([*lines, "</svg>", "</figure>"])


def _legend() -> list[str]:
    """Return the SVG of the legend: the mark of each verdict, the paper's own effect, arrows."""
    lines: list[str] = []
    x, y = 10, 12
    for word in MARKS:
        wide = 18 + 5.2 * len(word)
        if x + wide > WIDTH:
            x, y = 10, y + 16
        lines += [f'<g class="{_class(word)}">{_mark(word, x, y)}</g>', _said(x + 8, y, word)]
        x += round(wide)
    y += 16
    lines += [
        f'<path class="paper" d="{_diamond(10, y)}"/>',
        _said(18, y, "the paper's own effect"),
    ]
    lines += [f'<g class="older">{_mark("holds", 140, y)}</g>', _said(148, y, "grey: older code")]
    lines += [f"<g>{_arrow(246, y, 1)}</g>", _said(252, y, "beyond the scale")]
    return lines


def _said(x: float, y: float, text: str) -> str:
    """Return the SVG of words of the legend."""
    return f'<text class="soft left" x="{x:g}" y="{y + 4:g}">{escape(text)}</text>'


def _class(word: str) -> str:
    """Return the class of a verdict's row, which site.css colours."""
    return word.replace(" ", "-")


def _row(row: EvidenceRow, y: float) -> Iterable[str]:
    """Yield the SVG of one claim: name, the paper's effect and our figure."""
    name = row.name if len(row.name) <= NAME else row.name[: NAME - 1] + "…"
    title = escape(f"{row.name}: {row.word}")
    yield f'<g class="{_class(row.word) if row.counted else "older"}"><title>{title}</title>'
    yield f'<path class="scale" d="M{LEFT} {y:g}H{RIGHT}"/>'
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
    # the farthest of our interval and both figures stands near the end of the scale; if all values
    # of a row are the target, it is in the middle
    drawn = [*values.get("ours", ()), *values.get("effect", ())[:1]]
    farthest = max((abs(v) for v in drawn if math.isfinite(v)), default=0.0) or 1.0
    scale = REACH * HALF / farthest

    def placed(value: float) -> float:
        """Return the pixel of a distance from the target."""
        return MIDDLE + scale * value

    return {kind: (placed(p), placed(a), placed(b)) for kind, (p, a, b) in values.items()}


def _bar(kind: str, word: str, x: float, low: float, high: float, y: float) -> Iterable[str]:
    """Yield the SVG of a figure and its interval, with an arrow where that leaves the scale."""
    if kind == "effect":
        y -= 6
    # without an interval the point stands alone
    if high > low:
        line = "paper" if kind == "effect" else "interval"
        yield f'<path class="{line}" d="M{max(low, LEFT):.1f} {y:g}H{min(high, RIGHT):.1f}"/>'
        for end, sign, beyond in ((LEFT, -1, low < LEFT), (RIGHT, 1, high > RIGHT)):
            if beyond:
                yield _arrow(end, y, sign, line)
    yield f'<path class="paper" d="{_diamond(x, y)}"/>' if kind == "effect" else _mark(word, x, y)


def _arrow(x: float, y: float, sign: int, line: str = "interval") -> str:
    """Return the SVG of an arrow's head that ends at x.  sign: 1 to the right, -1 to the left."""
    return f'<path class="{line}" d="M{x - 5 * sign:.1f} {y - 4:g}L{x:.1f} {y:g}l{-5 * sign} 4"/>'


def _mark(word: str, x: float, y: float) -> str:
    """Return the mark of a verdict, which no two share: colours alone are not for everybody."""
    if word == "holds":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:g}" r="4"/>'
    if word == "fails":
        return f'<path class="mark" d="M{x - 4:.1f} {y - 4:g}h8v8h-8z"/>'
    if word == "not reproduced at this scale":
        return f'<path class="hollow" d="M{x - 4:.1f} {y - 4:g}h8v8h-8z"/>'
    if word == "withdrawn":
        return f'<path class="cross" d="M{x:.1f} {y - 5:g}v10"/>'
    if word == "void":
        cross = f"M{x - 4:.1f} {y - 4:g}l8 8m-8 0l8 -8"
        return f'<path class="cross" d="{cross}"/>'
    return f'<circle class="hollow" cx="{x:.1f}" cy="{y:g}" r="3.5"/>'


def _diamond(x: float, y: float) -> str:
    """Return the SVG path of a diamond around a point, in pixels."""
    return f"M{x:.1f} {y - 4.5:g}l4.5 4.5l-4.5 4.5l-4.5 -4.5z"
