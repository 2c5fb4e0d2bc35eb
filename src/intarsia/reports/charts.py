"""Charts as SVG: series over two axes, and bars.

The style sheet of the page gives colours, so that light and dark are one drawing. Every mark has a
`title` element, which browsers show as a tooltip. All text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from html import escape

from .looks import MARKS, Look
from .numbers import MINUS, PREFIXES
from .report import When
from .sheet import Spread

WIDTH, HEIGHT = 520, 320  # px of a chart with two axes
LETTER = 8.6  # px of a letter of the axes on a telephone, where they are largest, on average
MARKED = 12  # points of a line that get a mark each
HITS = 120  # points of a line that get a tooltip each


@dataclass(frozen=True)
class Series:
    """Points of a chart, joined by a line or not.

    look: colour and mark.  hover: tooltip of each point.  spread: half the length of an error bar.
    when: the choices at which it is drawn.
    """

    name: str
    x: Sequence[float] | Sequence[str]
    y: Sequence[float]
    look: Look
    hover: Sequence[str]
    joined: bool = True
    dotted: bool = False
    faint: bool = False
    sizes: Sequence[float] = ()
    spread: float = 0.0
    when: When = field(default_factory=dict)


@dataclass(frozen=True)
class Axis:
    """An axis.

    unit: behind each tick; " %" is of shares, from 0 to 100.  zero: it begins at 0.
    names: categories instead of numbers.  limits: its ends, None = the data's ends with a margin.
    integers: only whole numbers have ticks.
    """

    title: str = ""
    unit: str = ""
    log: bool = False
    reverse: bool = False
    zero: bool = False
    limits: tuple[float, float] | None = None
    names: tuple[str, ...] = ()
    integers: bool = False


def shown_when(when: When) -> str:
    """Return the HTML attribute that shows an element only at certain choices of the reader.

    when: key of a control of the page -> value at which the element is shown; empty = always, and
      the result is "". The page's script reads the attribute.
    """
    if not when:
        return ""
    pairs = " ".join(f"{key}={value}" for key, value in when.items())
    return f' data-when="{escape(pairs)}"'


@dataclass(frozen=True)
class Chart:
    """Series over two axes."""

    series: Sequence[Series]
    x: Axis
    y: Axis

    def svg(self, label: str) -> str:
        """Return the chart as SVG.  label: a description for readers who cannot see it."""
        return _draw_chart(self, label)


def _draw_chart(chart: Chart, label: str) -> str:
    """Draw a chart of lines or points over two axes, as SVG."""
    series, x, y = chart.series, chart.x, chart.y
    series = [_without_infinite(line) for line in series]
    # the axes cover every point and its error bar
    xs = [float(v) for line in series for v in _coordinates(line, x)]
    ys = [v + sign * line.spread for line in series for v in line.y for sign in (-1, 1)]
    # leave room at the left for the longest tick label
    margin = 26 + LETTER * max(map(len, (text for _, text in _ticks(y, ys))), default=1)
    box = (margin, 10.0, WIDTH - 12.0, HEIGHT - 46.0)
    across = _scale(x, xs, box[0], box[2])
    up = _scale(y, ys, box[3], box[1])
    parts = [*_axis_lines(x, xs, across, box, True), *_axis_lines(y, ys, up, box, False)]
    # lines are drawn over the grid
    inside = "".join(_draw_series(line, x, across, up) for line in series)
    if y.limits is not None:  # parts of lines beyond the limits are cut off
        place = (
            f"{box[0]:.1f} {box[1] - 6:.1f} {box[2] - box[0] + 12:.1f} {box[3] - box[1] + 12:.1f}"
        )
        x0, y0, wide, high = place.split()
        size = f'x="{x0}" y="{y0}" width="{wide}" height="{high}"'
        inside = f'<svg {size} viewBox="{place}">{inside}</svg>'
    parts.append(inside)
    return svg(WIDTH, HEIGHT, label, parts)


def _without_infinite(line: Series) -> Series:
    """Return a series without its points that are infinite or NaN: they cannot be drawn."""
    if all(map(math.isfinite, line.y)):
        return line
    finite = [i for i, value in enumerate(line.y) if math.isfinite(value)]
    x, y, hover = ([values[i] for i in finite] for values in (line.x, line.y, line.hover))
    return replace(line, x=x, y=y, hover=hover, sizes=[line.sizes[i] for i in finite if line.sizes])


def _coordinates(line: Series, axis: Axis) -> list[float]:
    if axis.names:
        return [float(axis.names.index(str(name))) for name in line.x]
    return [float(value) for value in line.x]


def _limits(axis: Axis, values: Sequence[float]) -> tuple[float, float]:
    if axis.limits is not None:
        return axis.limits
    if axis.names:
        return -0.5, len(axis.names) - 0.5
    low, high = min(values, default=0.0), max(values, default=1.0)
    if axis.log:
        low, high = math.log10(low), math.log10(high)
        margin = max(0.1, 0.06 * (high - low))
        return 10 ** (low - margin), 10 ** (high + margin)
    # equal values still need an axis with some length
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return (min(0.0, low) if axis.zero else low - margin), high + margin


def _scale(
    axis: Axis, values: Sequence[float], start: float, end: float
) -> Callable[[float], float]:
    """Return the function that turns a value of an axis into a position in pixels."""
    low, high = _limits(axis, values)
    # px grow to the right and downwards; a caller swaps start and end for the vertical axis
    if axis.reverse:
        start, end = end, start
    if axis.log:
        low, high = math.log10(low), math.log10(high)
        return lambda v: start + (math.log10(v) - low) / (high - low) * (end - start)
    return lambda v: start + (v - low) / (high - low) * (end - start)


def _ticks(axis: Axis, values: Sequence[float]) -> list[tuple[float, str]]:
    """Return the ticks of an axis: (value, label) each.  values: numbers drawn along the axis."""
    if axis.names:
        return [(float(i), name) for i, name in enumerate(axis.names)]
    low, high = _limits(axis, values)
    places = _log_ticks(low, high) if axis.log else _round_ticks(low, high)
    if axis.integers:
        places = [value for value in places if value == round(value)]
    if axis.unit == " %":  # a share: the margin around it has no ticks
        places = [value for value in places if 0 <= value <= 100]
    return [(value, f"{tick_text(value)}{axis.unit}") for value in places]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = math.log10(high / low)
    # over many decades only powers of ten, over few also 2 and 5, within one all
    steps = (1.0,) if decades > 2 else (1.0, 2.0, 5.0) if decades > 0.7 else tuple(range(1, 10))
    # every power of ten that the axis touches, times each step
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    ticks = [value for value in ticks if low <= value <= high]
    # one tick gives no scale: a short axis has the ticks of a linear one
    if len(ticks) < 2:
        return _round_ticks(low, high)
    # over very many decades, only every second or third one
    return ticks[:: 1 + int(decades / 7)]


def _round_ticks(low: float, high: float, limit: int = 6) -> list[float]:
    """Return at most `limit` multiples of 1, 2 or 5 times a power of ten between two values."""
    # the power of ten just below the ideal distance of two ticks
    size = 10.0 ** math.floor(math.log10((high - low) / limit))
    # the smallest step with at most `limit` ticks
    step = next(size * k for k in (1, 2, 5, 10, 20) if (high - low) / (size * k) <= limit)
    # the first multiple inside the axis; 1e-9 forgives rounding at its end
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """Return the label of a tick: 0.25, 1500, 20k, 3M.  value: the number."""
    # whole thousands only from 10 000 on: 1500 is easier to read than 1.5k
    size = next((s for s in PREFIXES if s >= 1e3 and abs(value) >= max(s, 1e4)), 1)
    text = f"{value / size:.4g}{PREFIXES[size]}"
    return text.replace("-", MINUS) if not 0 < abs(value) < 1e-4 else text


def _axis_lines(
    axis: Axis,
    values: Sequence[float],
    place: Callable[[float], float],
    box: tuple[float, float, float, float],
    across: bool,
) -> list[str]:
    """Draw the grid lines, ticks, labels and title of an axis, as SVG elements."""
    start, top, right, bottom = box
    parts: list[str] = []
    for value, text in _ticks(axis, values):
        pixel = place(value)
        if across:
            text = text if not axis.names else _shortened(text, (right - start) / len(axis.names))
            parts.append(f'<path class="tick" d="M{pixel:.1f} {bottom}v4"/>')
            parts.append(text_at(pixel, bottom + 17, text, "middle"))
        else:
            parts.append(f'<path class="grid" d="M{start:.1f} {pixel:.1f}H{right}"/>')
            parts.append(text_at(start - 6, pixel + 4, text, "end"))
    if across:
        parts.append(f'<path class="tick" d="M{start:.1f} {bottom}H{right}"/>')
        parts.append(text_at((start + right) / 2, bottom + 38, axis.title, "middle"))
    elif axis.title:
        middle = (top + bottom) / 2
        turn = f'transform="rotate(-90 12 {middle:.1f})" '
        parts.append(text_at(12, middle, axis.title, "middle", turn))
    return parts


def _shortened(text: str, width: float) -> str:
    count = max(2, int(width / LETTER))
    return text if len(text) <= count else text[: count - 1] + "\N{HORIZONTAL ELLIPSIS}"


def text_at(x: float, y: float, text: str, anchor: str, attributes: str = "") -> str:
    """Return a text as an SVG element, escaped.

    anchor: "start", "middle" or "end" of the text lies there; attributes: further ones of the
      element, with a space at the end.
    """
    return f'<text {attributes}x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _draw_series(
    line: Series, axis: Axis, across: Callable[[float], float], up: Callable[[float], float]
) -> str:
    """Draw one series as an SVG group: line, error bar, marks and tooltips."""
    points = [(across(x), up(y)) for x, y in zip(_coordinates(line, axis), line.y, strict=True)]
    parts: list[str] = []
    if line.joined and len(points) > 1:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path class="line{" dotted" if line.dotted else ""}" d="M{path}"/>')
    # an error bar with short caps, around the first point
    if line.spread:
        (x, _), y = points[0], line.y[0]
        low, high = up(y - line.spread), up(y + line.spread)
        bar = f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"
        parts.append(f'<path class="spread" d="{bar}"/>')
    # long lines get no marks, and tooltips at only some of their points
    marked = not line.joined or (len(points) <= MARKED and not line.faint) or len(points) == 1
    sizes = line.sizes or [8.0] * len(points)
    # at most HITS tooltips a line keep the page small
    step = 1 + len(points) // HITS
    for i, ((x, y), hover) in enumerate(zip(points, line.hover, strict=True)):
        title = f"<title>{escape(f'{line.name}: {hover}')}</title>"
        if marked:
            half = sizes[i] / 2
            place = f"translate({x - half:.1f} {y - half:.1f}) scale({sizes[i] / 16:.3g})"
            mark = MARKS[line.look.symbol]
            parts.append(f'<path class="dot" transform="{place}" d="{mark}">{title}</path>')
        elif not line.faint and i % step == 0:
            parts.append(f'<circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="5">{title}</circle>')
    faint = " faint" if line.faint else ""
    inside = "".join(parts)
    return f'<g class="series c{line.look.color}{faint}"{shown_when(line.when)}>{inside}</g>'


@dataclass(frozen=True)
class ChartBar:
    """A bar of a row from `start` on.  color: a number of the style sheet, or "left"."""

    row: int
    start: float
    length: float
    color: int | str
    hover: str


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars in rows with names."""

    bars: Sequence[ChartBar]
    rows: Sequence[str]
    axis: Axis

    def svg(self, label: str) -> str:
        """Return the chart as SVG.  label: a description for readers who cannot see it."""
        return _draw_bars(self, label)


def _draw_bars(chart: BarChart, label: str) -> str:
    """Draw horizontal bars as SVG; a row has several where they begin at different places."""
    bars, rows = chart.bars, chart.rows
    # room at the left for the longest name, a third of the chart at most
    margin = min(220.0, 12 + LETTER * max(map(len, rows), default=1))
    bottom = 8.0 + 24 * len(rows)
    box = (margin, 4.0, WIDTH - 16.0, bottom)
    # a bar may begin where another one ends
    ends = [bar.start + bar.length for bar in bars] or [1.0]
    axis = replace(chart.axis, limits=(0.0, max(ends) * 1.02 or 1.0))
    across = _scale(axis, ends, box[0], box[2])
    parts = _axis_lines(axis, ends, across, box, True)
    for i, name in enumerate(rows):
        parts.append(text_at(margin - 6, 8 + 24 * i + 15, _shortened(name, margin - 10), "end"))
    for bar in bars:
        x, end = across(bar.start), across(bar.start + bar.length)
        place = (
            f'x="{x:.2f}" y="{8 + 24 * bar.row + 2}" width="{max(end - x, 0.3):.2f}" height="20"'
        )
        title = f"<title>{escape(bar.hover)}</title>"
        parts.append(f'<rect class="bar c{bar.color}" {place}>{title}</rect>')
    return svg(WIDTH, bottom + 44, label, parts)


def svg(width: float, height: float, label: str, parts: Sequence[str], style: str = "") -> str:
    """Return an SVG element.

    label: a description for readers who cannot see it; style: CSS of a drawing that keeps its size
      in pixels and is scrolled if it is too wide, "" for one that fits itself to the page.
    """
    size = f' width="{width:.0f}" height="{height:.0f}" style="{style}"' if style else ""
    view = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    head = f'<svg class="chart{" fixed" if style else ""}" {view}{size} role="img"'
    return f'{head} aria-label="{escape(label)}">{"".join(parts)}</svg>'


@dataclass(frozen=True)
class Points:
    """A method in a chart of scores and costs: costs x and shares y of its runs, and y's spread.

    names: the runs' names.  when: the choices at which it is drawn.
    """

    label: str
    look: Look
    x: Sequence[float]
    y: Sequence[float]
    names: Sequence[str]
    spread: Spread
    when: When


def by_cost(series: Sequence[Points], y: str, *, seconds: bool) -> Chart:
    """Return a chart of scores against their cost: trained parameters or training seconds.

    seconds: True for seconds, False for parameters on a logarithmic axis. Each run has a small
      mark, each mean a large one with its spread.
    """
    unit = "{:,.1f} s" if seconds else "{:,.0f} parameters"
    drawn: list[Series] = []
    for points in series:
        # a log axis has no place for 0 parameters
        x = points.x if seconds else [max(count, 1) for count in points.x]
        shares = [100 * share for share in points.y]
        if len(shares) > 1:
            # single runs are drawn only where a mean hides them
            rows = zip(x, shares, points.names, strict=True)
            hover = [f"{share:.2f} %, {unit.format(spent)}, {name}" for spent, share, name in rows]
            sizes = [7.0] * len(shares)
            drawn.append(
                Series(
                    points.label,
                    x,
                    shares,
                    points.look,
                    hover,
                    joined=False,
                    faint=True,
                    sizes=sizes,
                    when=points.when,
                )
            )
        # the mean of the runs, with an error bar of one standard deviation
        deviation, mean = 100 * (points.spread.deviation or 0), 100 * points.spread.mean
        cost = sum(x) / len(x)
        score = f"{mean:.1f}" + (f" ± {deviation:.1f}" if deviation else "") + " %"
        drawn.append(
            Series(
                points.label,
                [cost],
                [mean],
                points.look,
                [f"{score}, {unit.format(cost)}"],
                joined=False,
                sizes=[13.0],
                spread=deviation,
                when=points.when,
            )
        )
    title = "Training time, seconds" if seconds else "Trained parameters, with head"
    return Chart(drawn, Axis(title, log=not seconds, zero=seconds), Axis(y, " %"))
