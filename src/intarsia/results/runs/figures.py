"""The page's plots as plotly figures; colours are left to the page, which knows light from dark.

Every trace's `meta` says what it shows, so that the page's controls can choose among traces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .. import plots
from ..wording import capital
from .confusion import Confusion, confusion_of
from .curves import line_of, mean_line, metrics_of
from .grouping import Comparison, RunGroup
from .reading import FinishedRun

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

UNIT = {"accuracy": " %", "balanced_accuracy": " %"}
NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "ece": "Calibration error",
    "mean_average_precision": "Mean average precision",
    "f1": "F1",
    "loss": "Loss",
    "lr": "Learning rate",
}
SPLITS = {"train": "training", "val": "validation"}
FEW = 12  # epochs that get a marker each
LEANING = 14  # classes whose names have room to lean
LEGIBLE = 20  # classes whose numbers still fit into their cells


def looks(comparison: Comparison) -> list[plots.Look]:
    """One for each group: a grey circle for the baseline, no two alike among the next 49."""
    groups, base = comparison.groups, comparison.baseline
    if base is None:
        return [plots.Look(1, 0)] * len(groups)
    return plots.looks_of(len(groups), groups.index(base))


def metric_name(metric: str) -> str:
    """As a reader calls it."""
    return NAMES.get(metric, metric.replace("_", " ").capitalize())


def by_parameters(comparison: Comparison) -> Figure:
    """Accuracy against trained parameters with the head."""
    figure = plots.against_parameters(_points(comparison, lambda run: float(run.costs.trained)))
    return figure.update_yaxes(title_text=capital(comparison.measure))


def by_time(comparison: Comparison) -> Figure:
    """Accuracy against training seconds."""
    figure = plots.against_seconds(_points(comparison, lambda run: run.costs.seconds))
    return figure.update_yaxes(title_text=capital(comparison.measure))


def _points(comparison: Comparison, cost: Callable[[FinishedRun], float]) -> list[plots.Points]:
    return [
        plots.Points(
            label=group.label,
            look=look,
            x=[cost(run) for run in group.runs],
            y=[run.scores.accuracy for run in group.runs],
            names=[f"seed {run.seed}" for run in group.runs],
            spread=group.accuracy,
        )
        for group, look in zip(comparison.groups, looks(comparison), strict=True)
    ]


def curves(comparison: Comparison) -> Figure | None:
    """Every value of metrics.jsonl by epoch, per method: mean over seeds, and each seed."""
    found = metrics_of(run.curve for run in comparison.runs)
    shapes = [plots.SYMBOLS[look.symbol] for look in looks(comparison)]
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
    figure = plots.figure_of(traces)
    figure.update_xaxes(title_text="Epoch")
    figure.update_layout(hovermode="x unified")
    return figure


def _curves_of(group: RunGroup, number: int, metric: str) -> Iterator[Any]:
    scale = 100 if metric in UNIT else 1
    for split, part in SPLITS.items():
        lines = {run.seed: line_of(run.curve, split, metric) for run in group.runs}
        mean = mean_line(lines.values())
        if not mean:
            continue
        about = {"metric": metric, "group": number, "split": split}
        name = plots.safe(f"{group.label}, {part}")
        yield _curve(mean, scale, name, about | {"seed": None})
        for seed, line in lines.items():
            if line and len(lines) > 1:
                yield _curve(line, scale, f"{name}, seed {seed}", about | {"seed": seed})


def _curve(line: Mapping[float, float], scale: float, name: str, about: dict[str, Any]) -> Any:
    go = plots.plotly()
    one, metric = about["seed"] is not None, about["metric"]
    form = ".4g" if metric not in UNIT else ".1f"
    return go.Scatter(
        x=list(line),
        y=[scale * value for value in line.values()],
        name=name,
        mode="lines" if one or len(line) > FEW else "lines+markers",
        line={"width": 1 if one else 2.5, "dash": "dot" if about["split"] == "train" else "solid"},
        marker={"size": 6},
        opacity=0.5 if one else 1,
        hovertemplate=f"%{{y:{form}}}{UNIT.get(metric, '')}<extra>%{{fullData.name}}</extra>",
        meta=about,
    )


def confusions(comparison: Comparison) -> Figure | None:
    """Two heat maps per method: counts, and shares of each row."""
    traces: list[Any] = []
    for i, group in enumerate(comparison.groups):
        if (found := confusion_of(group)) is not None:
            traces += [_heat(found, i, "counts"), _heat(found, i, "shares")]
    if not traces:
        return None
    figure = plots.figure_of(traces)
    # the page knows how wide the names are, and makes room for them
    leaning = len(traces[0].z) <= LEANING
    figure.update_xaxes(title_text="Predicted", automargin=False, tickangle=-40 if leaning else -90)
    figure.update_yaxes(title_text="True", automargin=False, autorange="reversed")
    figure.update_layout(hovermode="closest")
    return figure


def _heat(found: Confusion, number: int, mode: str) -> Any:
    names = [plots.safe(name) for name in found.classes]
    values = found.counts if mode == "counts" else 100 * found.shares
    shown = "{:.0f}".format
    legible = len(names) <= LEGIBLE
    text = [
        [shown(v) if c and legible else "" for v, c in zip(vs, cs, strict=True)]
        for vs, cs in zip(values, found.counts, strict=True)
    ]
    hover = [
        [
            f"{true}<br>taken for {taken}<br>{found.counts[i, j]} pictures, "
            f"{100 * found.shares[i, j]:.1f} % of the row"
            for j, taken in enumerate(names)
        ]
        for i, true in enumerate(names)
    ]
    ticks = [plots.safe(plots.short(name)) for name in found.classes]
    meta = {"group": number, "mode": mode, "ticks": ticks}
    return plots.heat(values.tolist(), meta, text=text, customdata=hover, zmin=0, **plots.TOLD)
