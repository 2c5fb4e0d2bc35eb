"""The figures of a comparison: scores against costs, learning curves, confusion matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from .. import charts, heat_maps
from ..looks import Look, looks_of, short
from ..report import Figure, When
from ..wording import capital
from .confusion import Confusion
from .curves import line_of, mean_line, metrics_of
from .grouping import Comparison, RunGroup
from .reading import FinishedRun

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
LEGIBLE = 20  # classes with numbers that still fit into their cells


def looks(comparison: Comparison) -> list[Look]:
    """Return a colour and a mark for each method of a comparison; the baseline is a grey circle.

    Up to 49 methods have different ones.
    """
    groups, base = comparison.groups, comparison.baseline
    if base is None:
        return [Look(1, 0)] * len(groups)
    return looks_of(len(groups), groups.index(base))


def metric_name(metric: str) -> str:
    """Return the name of a metric as a reader calls it."""
    return NAMES.get(metric, metric.replace("_", " ").capitalize())


def by_parameters(comparison: Comparison) -> Figure:
    """Draw each method's score against its number of trained parameters, head included."""
    # the head is part of what has to be trained and stored
    points = _points(comparison, lambda run: float(run.costs.trained))
    measure = capital(comparison.measure)
    label = f"{measure} against trained parameters; the numbers are in the table of results"
    drawing = charts.by_cost(points, measure, seconds=False)
    return Figure("parameters", label, drawing, "Against trained parameters")


def by_time(comparison: Comparison) -> Figure:
    """Draw each method's score against its training time in seconds."""
    points = _points(comparison, lambda run: run.costs.seconds)
    measure = capital(comparison.measure)
    label = f"{measure} against training time; the numbers are in the table of results"
    drawing = charts.by_cost(points, measure, seconds=True)
    return Figure("time", label, drawing, "Against training time")


def _points(comparison: Comparison, cost: Callable[[FinishedRun], float]) -> list[charts.Points]:
    """Return, for each method, its runs as points of a chart: score over a cost."""
    return [
        charts.Points(
            label=group.label,
            look=look,
            x=[cost(run) for run in group.runs],
            y=[run.scores.accuracy for run in group.runs],
            names=[f"seed {run.seed}" for run in group.runs],
            spread=group.accuracy,
            when={"group": number},
        )
        for number, (group, look) in enumerate(
            zip(comparison.groups, looks(comparison), strict=True)
        )
    ]


def splits_of(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """Return the parts of the data that were logged while training, as (key, name) each."""
    # a part without a value gets no checkbox
    splits = {point.split for run in comparison.runs for point in run.curve}
    return tuple((split, name) for split, name in SPLITS.items() if split in splits)


def curves(comparison: Comparison) -> list[Figure]:
    """Draw the learning curves, one figure for each logged value.

    A curve is a method's mean over seeds, or one seed, by epoch.
    """
    figures: list[Figure] = []
    for metric in metrics_of(run.curve for run in comparison.runs):
        series = [
            line
            for i, group in enumerate(comparison.groups)
            for line in _curves_of(group, i, metric, looks(comparison)[i])
        ]
        if not series:
            continue
        name = metric_name(metric)
        up = charts.Axis(name, UNIT.get(metric, ""))
        label = f"{name} by epoch"
        drawing = charts.Chart(series, charts.Axis("Epoch", integers=True), up)
        figures.append(Figure(f"curves-{metric}", label, drawing, when={"metric": metric}))
    return figures


def _curves_of(group: RunGroup, number: int, metric: str, look: Look) -> Iterator[charts.Series]:
    """Yield a method's curves of one metric: for each part of the data the mean, then each seed."""
    for split, part in SPLITS.items():
        lines = {run.seed: line_of(run.curve, split, metric) for run in group.runs}
        # the mean has the full line; each seed, if there are several, a faint one
        if not (mean := mean_line(lines.values())):
            continue
        name = f"{group.label}, {part}"
        choices = {"group": number, "split": split}
        yield _curve(mean, metric, name, look, choices | {"seed": "mean"})
        for seed, line in lines.items():
            if line and len(lines) > 1:
                about_seed = choices | {"seed": "single"}
                yield _curve(line, metric, f"{name}, seed {seed}", look, about_seed)


def _curve(
    line: Mapping[float, float], metric: str, name: str, look: Look, choices: When
) -> charts.Series:
    # shares are drawn in percent
    values = [(100 if metric in UNIT else 1) * value for value in line.values()]
    form = ".1f" if metric in UNIT else ".4g"
    hover = [
        f"{value:{form}}{UNIT.get(metric, '')} at epoch {epoch:g}"
        for epoch, value in zip(line, values, strict=True)
    ]
    return charts.Series(
        name,
        list(line),
        values,
        look,
        hover,
        dotted=choices["split"] == "train",
        faint=choices["seed"] == "single",
        when=choices,
    )


def confusions(confusion: Confusion, number: int) -> list[Figure]:
    """Draw a confusion matrix twice: as shares of each row in percent, and as counts."""
    names = [short(name) for name in confusion.classes]
    hover = [
        [
            f"{true} taken for {predicted}: {confusion.counts[i, j]} pictures, "
            f"{100 * confusion.shares[i, j]:.1f} % of the row"
            for j, predicted in enumerate(confusion.classes)
        ]
        for i, true in enumerate(confusion.classes)
    ]
    # with more classes the numbers are in the tooltips alone
    legible = len(names) <= LEGIBLE
    figures: list[Figure] = []
    for mode, values in (("shares", 100 * confusion.shares), ("counts", confusion.counts)):
        text = [
            [f"{v:.0f}" if c and legible else "" for v, c in zip(vs, cs, strict=True)]
            for vs, cs in zip(values, confusion.counts, strict=True)
        ]
        # shares of all methods have one scale; counts end at their own highest
        top = 100.0 if mode == "shares" else float(confusion.counts.max())
        cells = heat_maps.HeatMap(
            values.tolist(), names, names, top, hover, text, x="Predicted", y="True", width=560
        )
        label = "Confusion matrix; the most frequent confusions are in the table beside it"
        caption = "A row holds the pictures of one class; a column what they were taken for."
        name, title, choices = f"confusion-{number}-{mode}", "Confusion matrix.", {"mode": mode}
        figures.append(Figure(name, label, cells, title, caption, when=choices))
    return figures
