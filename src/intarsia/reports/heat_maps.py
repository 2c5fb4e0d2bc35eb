"""Heat maps as SVG; colours, tooltips and escaping are as in `charts`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from .charts import LETTER, svg, text_at


@dataclass(frozen=True)
class HeatMap:
    """Values of a heat map, (rows, columns); None = empty.

    text: in each cell; hover: its tooltip.  top: where the colours end, equal for maps that are
    compared.  diverging: colours for both signs.  panel: number of the panel that a click shows.
    strong: rows with names in bold.  width: px that it takes at most, where its texts leave that
    choice.
    """

    values: Sequence[Sequence[float | None]]
    rows: Sequence[str]
    columns: Sequence[str]
    top: float
    hover: Sequence[Sequence[str]]
    text: Sequence[Sequence[str]] = ()
    diverging: bool = False
    panel: Mapping[tuple[int, int], int] = field(default_factory=dict)
    strong: frozenset[int] = frozenset()
    x: str = ""
    y: str = ""
    width: float = 720

    def svg(self, label: str) -> str:
        """Return the heat map as SVG.  label: a description for readers who cannot see it."""
        return _draw_heat_map(self, label)


def _draw_heat_map(cells: HeatMap, label: str) -> str:
    """Draw a heat map as SVG; its cells are as wide as their texts and their number allow."""
    across = max(len(cells.columns), 1)
    letters = max((len(t) for row in cells.text for t in row), default=0)
    margin = 10 + LETTER * max(map(len, cells.rows), default=1) + (18 if cells.y else 0)
    # a cell holds its text; beyond that the map fills its width, up to 64 px a cell
    least = max(10.0, LETTER * letters + 6)
    cell = max(least, min(64.0, (cells.width - margin - 40) / across))
    # the longest name of a column, in pixels
    longest = LETTER * max(map(len, cells.columns), default=1)
    # every stride-th name fits next to its neighbours
    stride = max(1, math.ceil((longest + 4) / cell))
    # short names, such as numbers, stand upright and some are left out; others lean
    leaning = stride > 1 and longest > 4 * LETTER
    lean = longest * (0.64 if leaning else 0) + (16 if leaning else 20)
    top = lean + (16 if cells.x else 0)
    high = (
        max(24.0, min(40.0, 320 / max(len(cells.rows), 1), cell))
        if letters
        else max(12.0, min(24.0, cell))
    )
    # the last leaning name reaches beyond its column
    right = longest * 0.77 if leaning else 8
    parts: list[str] = []
    for j, name in enumerate(cells.columns):
        x = margin + (j + 0.5) * cell
        if leaning:
            turn = f'transform="rotate(-40 {x:.1f} {top - 6:.1f})" '
            parts.append(text_at(x, top - 6, name, "start", turn))
        elif j % stride == 0:
            parts.append(text_at(x, top - 6, name, "middle"))
    # rows that are lower than a letter are not all named
    rare = max(1, math.ceil(13 / high))
    for i, name in enumerate(cells.rows):
        if i % rare == 0:
            style = 'class="strong" ' if i in cells.strong else ""
            parts.append(text_at(margin - 6, top + (i + 0.5) * high + 4, name, "end", style))
    parts += _titles(cells, margin, across * cell, top, high)
    for i, row in enumerate(cells.values):
        drawn = "".join(
            _draw_cell(cells, i, j, value, j * cell, cell, high) for j, value in enumerate(row)
        )
        parts.append(
            f'<g class="row" transform="translate({margin:.1f} {top + i * high:.1f})">{drawn}</g>'
        )
    width, height = margin + across * cell + right, top + len(cells.rows) * high + 6
    return svg(width, height, label, parts, f"--w:{cell - 1:.1f}px;--h:{high - 1:.1f}px")


def _titles(cells: HeatMap, margin: float, wide: float, top: float, high: float) -> list[str]:
    """Return the titles of a heat map's two axes as SVG elements."""
    parts = [text_at(margin + wide / 2, 12, cells.x, "middle")] if cells.x else []
    if cells.y:
        middle = top + len(cells.rows) * high / 2
        parts.append(
            text_at(12, middle, cells.y, "middle", f'transform="rotate(-90 12 {middle})" ')
        )
    return parts


def _draw_cell(
    cells: HeatMap, i: int, j: int, value: float | None, x: float, wide: float, high: float
) -> str:
    """Draw one cell of a heat map, as SVG; a style sheet sets its width and height."""
    text = cells.text[i][j] if cells.text else ""
    panel = cells.panel.get((i, j))
    # nothing to draw, and nothing to click on
    if value is None and not text and panel is None:
        return ""
    share = 0.0 if value is None else min(1.0, abs(value) / (cells.top or 1.0))
    # a colour for each sign, and a shade for the size
    kind = "fall" if cells.diverging and (value or 0) < 0 else "heat"
    shade = f' style="--s:{share:.2g}"' if value is not None else ""
    title = f"<title>{escape(cells.hover[i][j])}</title>"
    drawn = (
        f'<rect class="{kind if value is not None else "empty"}" x="{x:.4g}"{shade}>{title}</rect>'
    )
    if text:
        # a strong colour needs text of another colour than a weak one
        over = 'class="on" ' if share > 0.55 else ""
        place = f'x="{x + wide / 2:.4g}" y="{high / 2 + 4:.3g}"'
        drawn += f"<text {over}{place}>{escape(text)}</text>"
    return drawn if panel is None else f'<g class="open" data-panel="{panel}">{drawn}</g>'
