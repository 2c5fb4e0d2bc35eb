"""The figures of a comparison of routers: curves while training, and shares on the test part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

from intarsia.reports.charts import Axis, Chart, Series
from intarsia.reports.heat_maps import HeatMap
from intarsia.reports.looks import Look, looks_of, short
from intarsia.reports.report import Figure

from .findings import RouterResults, RouterSheet, Row

QUARTERS = ("first", "second", "third", "last")
FEW = 8  # contenders that are told apart at one glance
Line = dict[Any, float]


def names_of(sheets: Sequence[RouterSheet]) -> list[str]:
    """Return every contender once; its place is its group's number."""
    # a dict keeps the order and drops repeats
    return list(dict.fromkeys(contender.name for sheet in sheets for contender in sheet.contenders))


def looks(sheets: Sequence[RouterSheet]) -> list[Look]:
    """Return a colour and mark for each router; grey for the baseline."""
    base = next((sheet.baseline for sheet in sheets if sheet.baseline), None)
    names = names_of(sheets)
    return looks_of(len(names), names.index(base.name) if base else None)


Read = Callable[[Row], dict[int | None, Line]]
"""A cell -> its line for each layer; layer None = of the whole, or the mean over layers."""


def _curve(axis: str) -> Read:
    return lambda row: {None: {point[axis]: point["loss"] for point in row["curve"]}}


def _course_by(name: str) -> Read:
    """Return a function that reads how a measure of the layers changed in training."""

    def read(row: Row) -> dict[int | None, Line]:
        """Return step -> measure, for each layer and for their mean (None)."""
        points = [point for point in row["curve"] if point["layers"]]
        lines: dict[int | None, Line] = {
            i: {point["step"]: point["layers"][i][name] for point in points}
            for i in range(len(row["layers"]))
        }
        return _with_mean(lines) if points else {}

    return read


def _with_mean(lines: dict[int | None, Line]) -> dict[int | None, Line]:
    # all layers have the same x
    some = next(iter(lines.values()), {})
    return {None: {x: fmean(line[x] for line in lines.values()) for x in some}, **lines}


def _agreement(row: Row) -> dict[int | None, Line]:
    pairs = [pair["normalised"] for pair in row["agreement"]]
    return {None: {f"{i + 1} and {i + 2}": v for i, v in enumerate(pairs)}} if pairs else {}


def _specialisation(row: Row) -> dict[int | None, Line]:
    values = [layer["specialisation"]["normalised"] for layer in row["layers"]]
    return {None: {f"{i + 1}": v for i, v in enumerate(values)}} if values else {}


def _dropped_by(name: str) -> Read:
    """Return a function that reads the share of dropped pairs by quarter."""

    def read(row: Row) -> dict[int | None, Line]:
        """Return quarter -> percent, for each layer and for their mean (None); {} without drops."""
        if not any(layer["dropped"] for layer in row["layers"]):
            return {}
        return _with_mean(
            {
                i: {q: 100 * v for q, v in zip(QUARTERS, layer[name], strict=True)}
                for i, layer in enumerate(row["layers"])
            }
        )

    return read


def _positions(row: Row) -> dict[int | None, Line]:
    losses = row.get("loss_by_position")
    return {None: dict(zip(QUARTERS, losses, strict=True))} if losses else {}


class LineFigure(NamedTuple):
    """A figure of lines: the value to read of a row, its title, its axes' titles, and its kind.

    layered: it has a line for each layer.  late: the first quarter of a course, where values fall
    fast, does not decide the ends of its axis.
    """

    name: str
    title: str
    read: Read
    x: Axis
    y: Axis
    layered: bool = False
    late: bool = False


def drawings() -> tuple[LineFigure, ...]:
    """Return the kinds of line figures: four of the training, then five of test part and drops."""
    quarters, dropped = QUARTERS, Axis("Dropped", " %", zero=True)
    information = Axis("Normalised information", zero=True)
    loss = Axis("Validation loss")
    return (
        LineFigure("by_steps", "Loss by steps", _curve("step"), Axis("Steps"), loss, late=True),
        LineFigure("by_operations", "Loss by operations", _curve("flops"), Axis("Operations"), loss,
                late=True),
        LineFigure("load_cv", "Load CV by steps", _course_by("load_cv"), Axis("Steps"),
                Axis("Load CV", zero=True), layered=True),
        LineFigure("gate_entropy", "Gate entropy by steps", _course_by("gate_entropy"),
                Axis("Steps"), Axis("Nats", zero=True), layered=True),
        LineFigure("agreement", "Agreement of consecutive layers", _agreement, Axis("Layers"),
                information),
        LineFigure("specialisation", "Specialisation by layer", _specialisation, Axis("Layer"),
                information),
        LineFigure("loss_by_position", "Loss by position", _positions,
                Axis("Quarter of the row", names=quarters), Axis("Test loss")),
        LineFigure("by_place", "Dropped by place in the batch", _dropped_by("dropped_by_place"),
                Axis("Quarter of the batch", names=quarters), dropped, layered=True),
        LineFigure("by_position", "Dropped by position in the row",
                _dropped_by("dropped_by_position"),
                Axis("Quarter of the row", names=quarters), dropped, layered=True),
    )  # fmt: skip


def figures_of(sheets: Sequence[RouterSheet], number: int) -> dict[str, Figure]:
    """Return the line figures of one sheet, the results of all routers on one data set and budget.

    sheets: all of them, which give common styles; number: index of the sheet. Figures without data
      are left out. Returns name -> figure.
    """
    figures: dict[str, Figure] = {}
    for drawing in drawings():
        if series := series_of(sheets, number, drawing):
            figures[drawing.name] = _line_figure(drawing, series, number)
    return figures


def series_of(sheets: Sequence[RouterSheet], number: int, drawing: LineFigure) -> list[Series]:
    """Return the lines of a figure: for each router the mean over seeds, and each seed.

    sheets: all of them; number: index of the sheet; drawing: which measure.
    """
    # a router has the same number and style on every sheet
    by_name = dict(zip(names_of(sheets), enumerate(looks(sheets)), strict=True))
    return [
        line
        for contender in sheets[number].contenders
        for line in _router_lines(contender, drawing, *by_name[contender.name])
    ]


def _line_figure(drawing: LineFigure, series: Sequence[Series], sheet: int) -> Figure:
    """Build a figure of lines."""
    x, y = drawing.x, drawing.y
    if drawing.name in ("agreement", "specialisation"):
        # categories in the order of the lines
        x = replace(x, names=tuple(dict.fromkeys(str(v) for line in series for v in line.x)))
    # the first quarter, where losses fall fast, does not decide the axis
    if drawing.late:
        values = [v for line in series for v in list(line.y)[len(line.y) // 4 :]]
        margin = 0.05 * (max(values) - min(values)) or 0.1
        y = replace(y, limits=(min(values) - margin, max(values) + margin))
    label = f"{drawing.title}; the mean is in the table"
    name, conditions = f"{drawing.name}-{sheet}", {"sheet": sheet}
    return Figure(name, label, Chart(series, x, y), drawing.title, when=conditions)


def _router_lines(
    contender: RouterResults, drawing: LineFigure, group: int, look: Look
) -> Iterator[Series]:
    """Yield a router's lines of a figure: for each layer the mean over seeds, and each seed."""
    read = {row["seed"]: drawing.read(row) for row in contender.rows}
    by_seed = {seed: layers for seed, layers in read.items() if layers}
    if not by_seed:
        return
    # layer None is the whole model, or the mean over layers
    for layer in next(iter(by_seed.values())):
        conditions: dict[str, str | int] = {"group": group}
        if drawing.layered:
            conditions["layer"] = "mean" if layer is None else layer
        seeds = {seed: layers[layer] for seed, layers in by_seed.items()}
        yield _line(
            _mean(list(seeds.values())), contender.name, look, conditions | {"seed": "mean"}
        )
        for seed, line in seeds.items() if len(seeds) > 1 else ():
            yield _line(
                line, f"{contender.name}, seed {seed}", look, conditions | {"seed": "single"}
            )


def _mean(lines: Sequence[Line]) -> Line:
    """Return the mean of several seeds' lines, point by point.

    Seeds may differ in x, the operations spent by then, so that x is averaged, too.
    """
    # the n-th point of every seed belongs together
    points = zip(*(line.items() for line in lines), strict=False)
    return {_mean_x([x for x, _ in point]): fmean(y for _, y in point) for point in points}


def _mean_x(xs: Sequence[Any]) -> Any:
    return xs[0] if isinstance(xs[0], str) or len(set(xs)) == 1 else fmean(xs)


def _line(line: Line, name: str, look: Look, conditions: dict[str, str | int]) -> Series:
    hover = [f"{y:.4g} at {x if isinstance(x, str) else f'{x:.6g}'}" for x, y in line.items()]
    # single seeds are drawn thin
    faint = conditions["seed"] == "single"
    return Series(name, list(line), list(line.values()), look, hover, faint=faint, when=conditions)


def maps(sheets: Sequence[RouterSheet]) -> list[Figure]:
    """Draw, for each layer of each router, which share of a class's tokens each expert has.

    The first seed of each router is drawn.
    """
    groups = {name: group for group, name in enumerate(names_of(sheets))}
    return [
        _map(
            layer, contender.rows[0], {"sheet": n, "contender": groups[contender.name], "depth": i}
        )
        for n, sheet in enumerate(sheets)
        for contender in sheet.contenders
        for i, layer in enumerate(contender.rows[0]["layers"])
    ]


def _map(layer: Row, row: Row, conditions: dict[str, str | int]) -> Figure:
    """Draw which share of each class's tokens goes to each expert.

    layer: counts (experts + 1, classes) of a layer.
    """
    counts: list[list[int]] = layer["table"]
    if not sum(counts[-1]):  # no token is without an expert
        counts = counts[:-1]
    # classes that occur
    places = [j for j in range(len(row["classes"])) if any(line[j] for line in counts)]
    total = {j: sum(line[j] for line in counts) for j in places}
    # of each class's tokens, in percent
    shares = [[100 * line[j] / total[j] for j in places] for line in counts]
    columns = [short(row["classes"][j]) for j in places]
    # experts count from 1 for readers; the last row has tokens without one
    rows = [*(str(i + 1) for i in range(layer["experts"])), "none"][: len(counts)]
    hover = [[f"{line[j]:,} of {total[j]:,}" for j in places] for line in counts]
    text = [[f"{share:.0f}" for share in line] for line in shares]
    cells = HeatMap(shares, rows, columns, 100.0, hover, text, y="Expert")
    label = "Experts by classes; how much they know of each other is in the table"
    name = "experts-" + "-".join(map(str, conditions.values()))
    return Figure(name, label, cells, when=conditions)
