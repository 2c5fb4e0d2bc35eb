"""The page's plots as plotly figures; colours are left to the page, which knows light from dark.

Every trace's `meta` says what it shows, so that the page's controls can choose among traces.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.errors import MissingExtra
from . import numbers
from .confusion import Confusion, confusion_of
from .curves import line_of, mean_line, metrics_of
from .gather import Run
from .groups import Comparison, Group, Spread

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
UNIT = {"accuracy": " %", "balanced_accuracy": " %"}
NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "loss": "Loss",
    "lr": "Learning rate",
}
SPLITS = {"train": "training", "val": "validation"}
FEW = 12  # epochs that get a marker each
LEANING = 14  # classes whose names have room to lean
LEGIBLE = 20  # classes whose numbers still fit into their cells
LONGEST = 18  # letters of a class on an axis


@dataclass(frozen=True)
class Look:
    """How a group is drawn: a number of the style sheet's colours, and a number of SYMBOLS."""

    color: int
    symbol: int


def looks(comparison: Comparison) -> list[Look]:
    """One for each group: a grey circle for the baseline, no two alike among the next 49."""
    groups, base = comparison.groups, comparison.baseline
    if base is None:
        return [Look(1, 0)] * len(groups)
    return looks_of(len(groups), groups.index(base))


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


def metric_name(metric: str) -> str:
    """As a reader calls it."""
    return NAMES.get(metric, metric.replace("_", " ").capitalize())


@dataclass(frozen=True)
class Points:
    """A series of a cost plot: costs x and shares y of its runs, their names, and y's spread."""

    label: str
    look: Look
    x: Sequence[float]
    y: Sequence[float]
    names: Sequence[str]
    spread: Spread


def by_parameters(comparison: Comparison) -> Figure:
    """Accuracy against trained parameters with the head."""
    return against_parameters(_points(comparison, lambda run: float(run.costs.trained)))


def by_time(comparison: Comparison) -> Figure:
    """Accuracy against training seconds."""
    return against_seconds(_points(comparison, lambda run: run.costs.seconds))


def _points(comparison: Comparison, cost: Callable[[Run], float]) -> list[Points]:
    return [
        Points(
            label=group.label,
            look=look,
            x=[cost(run) for run in group.runs],
            y=[run.scores.accuracy for run in group.runs],
            names=[f"seed {run.seed}" for run in group.runs],
            spread=group.accuracy,
        )
        for group, look in zip(comparison.groups, looks(comparison), strict=True)
    ]


def against_parameters(series: Sequence[Points]) -> Figure:
    """Accuracy against trained parameters with the head, on a log axis."""
    figure = _by_cost(series, "%{x:,} parameters")
    counts = [n for points in series for n in points.x]
    low, high = _log_range(min(counts), max(counts))
    figure.update_xaxes(
        type="log", title_text="Trained parameters, with head", range=[low, high],
        tickformat="~s", dtick=1 if high - low > 1.5 else "D2",
    )  # fmt: skip
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
                )  # fmt: skip
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
            )  # fmt: skip
        )
    figure = figure_of(traces)
    figure.update_yaxes(title_text="Accuracy", ticksuffix=" %")
    figure.update_layout(hovermode="closest")
    return figure


def curves(comparison: Comparison) -> Figure | None:
    """Every value of metrics.jsonl by epoch, per method: mean over seeds, and each seed."""
    found = metrics_of(run.curve for run in comparison.runs)
    shapes = [SYMBOLS[look.symbol] for look in looks(comparison)]
    traces = [
        trace
        for metric in found
        for i, group in enumerate(comparison.groups)
        for trace in _curves_of(group, i, metric)
    ]
    if not traces:
        return None
    for trace in traces:
        trace.marker.symbol = shapes[trace.meta["group"]]
    figure = figure_of(traces)
    figure.update_xaxes(title_text="Epoch")
    figure.update_layout(hovermode="x unified")
    return figure


def _curves_of(group: Group, number: int, metric: str) -> Iterator[Any]:
    scale = 100 if metric in UNIT else 1
    for split, part in SPLITS.items():
        lines = {run.seed: line_of(run.curve, split, metric) for run in group.runs}
        mean = mean_line(lines.values())
        if not mean:
            continue
        about = {"metric": metric, "group": number, "split": split}
        name = safe(f"{group.label}, {part}")
        yield _curve(mean, scale, name, about | {"seed": None})
        for seed, line in lines.items():
            if line and len(lines) > 1:
                yield _curve(line, scale, f"{name}, seed {seed}", about | {"seed": seed})


def _curve(line: Mapping[float, float], scale: float, name: str, about: dict[str, Any]) -> Any:
    go = plotly()
    one, metric = about["seed"] is not None, about["metric"]
    form = ".4g" if metric not in UNIT else ".1f"
    return go.Scatter(
        x=list(line), y=[scale * value for value in line.values()], name=name,
        mode="lines" if one or len(line) > FEW else "lines+markers",
        line={"width": 1 if one else 2.5, "dash": "dot" if about["split"] == "train" else "solid"},
        marker={"size": 6},
        opacity=0.5 if one else 1,
        hovertemplate=f"%{{y:{form}}}{UNIT.get(metric, '')}<extra>%{{fullData.name}}</extra>",
        meta=about,
    )  # fmt: skip


def confusions(comparison: Comparison) -> Figure | None:
    """Two heat maps per method: counts, and shares of each row."""
    traces: list[Any] = []
    for i, group in enumerate(comparison.groups):
        if (found := confusion_of(group)) is not None:
            traces += [_heat(found, i, "counts"), _heat(found, i, "shares")]
    if not traces:
        return None
    figure = figure_of(traces)
    # the page knows how wide the names are, and makes room for them
    leaning = len(traces[0].z) <= LEANING
    figure.update_xaxes(title_text="Predicted", automargin=False, tickangle=-40 if leaning else -90)
    figure.update_yaxes(title_text="True", automargin=False, autorange="reversed")
    figure.update_layout(hovermode="closest")
    return figure


def _heat(found: Confusion, number: int, mode: str) -> Any:
    go = plotly()
    names = [safe(name) for name in found.classes]
    values = found.counts if mode == "counts" else 100 * found.shares
    shown = "{:.0f}".format
    legible = len(names) <= LEGIBLE
    text = [[shown(v) if c and legible else "" for v, c in zip(vs, cs, strict=True)]
            for vs, cs in zip(values, found.counts, strict=True)]  # fmt: skip
    hover = [
        [f"{true}<br>taken for {taken}<br>{found.counts[i, j]} pictures, "
         f"{100 * found.shares[i, j]:.1f} % of the row" for j, taken in enumerate(names)]
        for i, true in enumerate(names)
    ]  # fmt: skip
    ticks = [safe(short(name)) for name in found.classes]
    return go.Heatmap(
        z=values.tolist(), text=text, customdata=hover, texttemplate="%{text}",
        hovertemplate="%{customdata}<extra></extra>", showscale=False, xgap=1, ygap=1, zmin=0,
        # places, not names: two names may be cut to the same
        x=list(range(len(names))), y=list(range(len(names))),
        meta={"group": number, "mode": mode, "ticks": ticks},
    )  # fmt: skip


def figure_of(traces: Sequence[Any]) -> Figure:
    """Traces in the layout that all pages share."""
    go = plotly()
    figure = go.Figure(list(traces))
    figure.update_layout(
        template="none", showlegend=False, margin={"l": 56, "r": 12, "t": 12, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
    )  # fmt: skip
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure
