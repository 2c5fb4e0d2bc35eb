"""What the pages' plotly figures share; the page itself colours them, in light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import MissingExtra
from . import numbers
from .sheet import Spread

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
COLORS = 7  # of the style sheet, beside grey
# the same shapes for tables and controls, as paths in a box of 16 by 16
MARKS = (
    "M8 2a6 6 0 1 0 .01 0z",
    "M2.5 2.5h11v11h-11z",
    "M8 1l7 7-7 7-7-7z",
    "M8 2l7 12H1z",
    "M5.5 1.5h5v4h4v5h-4v4h-5v-4h-4v-5h4z",
    "M4 1l4 4 4-4 3 3-4 4 4 4-3 3-4-4-4 4-3-3 4-4-4-4z",
    "M8 .8l2.2 5 5.3.5-4 3.6 1.2 5.3L8 12.4l-4.7 2.8 1.2-5.3-4-3.6 5.3-.5z",
    "M1 2h14L8 14z",
)
LONGEST = 18  # letters of a class on an axis


@dataclass(frozen=True)
class Look:
    """How a group is drawn: a number of the style sheet's colours, and a number of SYMBOLS."""

    color: int
    symbol: int


def looks_of(count: int, baseline: int | None) -> list[Look]:
    """One for each of `count` series; `baseline` is the number of the grey one, if any."""
    found = [Look(n % COLORS + 1, (n + n // COLORS) % 7 + 1) for n in range(count)]
    if baseline is not None:
        found.insert(baseline, Look(0, 0))
    return found[:count]


def plotly() -> Any:
    """plotly.graph_objects.  Raises: MissingExtra without plotly."""
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise MissingExtra("plotly", "report") from error
    return go


def safe(text: str) -> str:
    """Text as plotly shows it letter by letter: it reads a few HTML tags and entities."""
    return html.escape(text, quote=False)


def short(text: str, longest: int = LONGEST) -> str:
    """Cut to fit on an axis."""
    return text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class Points:
    """A series of a cost plot: costs x and shares y of its runs, their names, and y's spread."""

    label: str
    look: Look
    x: Sequence[float]
    y: Sequence[float]
    names: Sequence[str]
    spread: Spread


def against_parameters(series: Sequence[Points]) -> Figure:
    """Accuracy against trained parameters with the head, on a log axis."""
    figure = _by_cost(series, "%{x:,} parameters")
    counts = [n for points in series for n in points.x]
    low, high = _log_range(min(counts), max(counts))
    figure.update_xaxes(
        type="log",
        title_text="Trained parameters, with head",
        range=[low, high],
        tickformat="~s",
        dtick=1 if high - low > 1.5 else "D2",
    )
    return figure


def against_seconds(series: Sequence[Points]) -> Figure:
    """Accuracy against training seconds."""
    figure = _by_cost(series, "%{x:,.1f} s")
    figure.update_xaxes(title_text="Training time, seconds", rangemode="tozero")
    return figure


def _log_range(low: float, high: float) -> tuple[float, float]:
    """Decades with a margin: equal counts would leave a log axis without a range."""
    low, high = math.log10(max(low, 1)), math.log10(max(high, 1))
    margin = max(0.25, 0.08 * (high - low))
    return low - margin, high + margin


def _by_cost(series: Sequence[Points], unit: str) -> Figure:
    """A small mark per run; a large one with its spread at the mean."""
    go = plotly()
    traces: list[Any] = []
    for i, points in enumerate(series):
        symbol, name = SYMBOLS[points.look.symbol], safe(points.label)
        if len(points.y) > 1:
            hover = f"%{{y:.2f}} %, {unit}, %{{customdata}}<extra>%{{fullData.name}}</extra>"
            traces.append(
                go.Scatter(
                    x=list(points.x),
                    y=[100 * share for share in points.y],
                    mode="markers",
                    name=name,
                    customdata=list(points.names),
                    opacity=0.65,
                    hovertemplate=hover,
                    marker={"symbol": f"{symbol}-open", "size": 7},
                    meta={"group": i},
                )
            )
        deviation = 100 * (points.spread.deviation or 0)
        bar = {"type": "data", "array": [deviation], "thickness": 1.5, "width": 5}
        traces.append(
            go.Scatter(
                x=[sum(points.x) / len(points.x)],
                y=[100 * points.spread.mean],
                mode="markers",
                name=name,
                marker={"symbol": symbol, "size": 13},
                meta={"group": i},
                error_y={**bar, "visible": deviation > 0},
                customdata=[numbers.accuracy(points.spread)],
                hovertemplate=f"%{{customdata}}, {unit}<extra>%{{fullData.name}}</extra>",
            )
        )
    figure = figure_of(traces)
    figure.update_yaxes(title_text="Accuracy", ticksuffix=" %")
    figure.update_layout(hovermode="closest")
    return figure


def figure_of(traces: Sequence[Any]) -> Figure:
    """Traces in the layout that all pages share."""
    go = plotly()
    figure = go.Figure(list(traces))
    figure.update_layout(
        template="none",
        showlegend=False,
        margin={"l": 56, "r": 12, "t": 12, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


TOLD = {"texttemplate": "%{text}", "hovertemplate": "%{customdata}<extra></extra>"}


def heat(z: Sequence[Sequence[float | None]], meta: Mapping[str, Any], **options: Any) -> Any:
    """A heat map without a scale, by place: two names of an axis may be cut to the same."""
    places = {"x": list(range(len(z[0]))), "y": list(range(len(z)))}
    return plotly().Heatmap(z=z, showscale=False, xgap=1, ygap=1, meta=meta, **places, **options)
