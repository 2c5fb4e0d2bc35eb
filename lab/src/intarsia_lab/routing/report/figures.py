"""The page's plots as plotly figures; a trace's `meta` says what it shows.

meta: sheet and group by number; seed None = the mean over seeds; layer None = the mean over layers,
where there are layers. Colours are left to the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from intarsia.results.plots import SYMBOLS, Look, figure_of, heat, looks_of, plotly, safe, short

from .findings import RouterResults, RouterSheet, Row

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

QUARTERS = ("first", "second", "third", "last")
FEW = 8  # contenders that are told apart at one glance
Line = dict[Any, float]


def names_of(sheets: Sequence[RouterSheet]) -> list[str]:
    """Every contender once; its place is its group's number."""
    return list(dict.fromkeys(one.name for sheet in sheets for one in sheet.contenders))


def looks(sheets: Sequence[RouterSheet]) -> list[Look]:
    """One for each contender: grey for the baseline."""
    base = next((sheet.baseline for sheet in sheets if sheet.baseline), None)
    names = names_of(sheets)
    return looks_of(len(names), names.index(base.name) if base else None)


def plots(sheets: Sequence[RouterSheet]) -> dict[str, Figure]:
    """The figures that there are, by name."""
    found: dict[str, Figure | None] = {
        "by_steps": _lines(sheets, _curve("step"), "Steps", "Validation loss"),
        "by_operations": _lines(sheets, _curve("flops"), "Operations", "Validation loss"),
        "load_cv": _lines(sheets, _course("load_cv"), "Steps", "Load CV"),
        "gate_entropy": _lines(sheets, _course("gate_entropy"), "Steps", "Nats"),
        "agreement": _lines(sheets, _agreement, "Layers", "Normalised information"),
        "specialisation": _lines(sheets, _specialisation, "Layer", "Normalised information"),
        "by_place": _lines(sheets, _drops("dropped_by_place"), "Quarter of the batch", "Dropped"),
        "by_position": _lines(
            sheets, _drops("dropped_by_position"), "Quarter of the row", "Dropped"
        ),
        "loss_by_position": _lines(sheets, _positions, "Quarter of the row", "Test loss"),
        "experts": _maps(sheets),
    }
    for name in ("by_place", "by_position"):
        if (figure := found[name]) is not None:
            figure.update_yaxes(ticksuffix=" %", rangemode="tozero")
    for name in ("agreement", "specialisation", "by_place", "by_position", "loss_by_position"):
        if (figure := found[name]) is not None:
            figure.update_xaxes(type="category")
    for name in ("agreement", "specialisation", "load_cv", "gate_entropy"):
        if (figure := found[name]) is not None:
            figure.update_yaxes(rangemode="tozero")
    if (figure := found["by_operations"]) is not None:
        figure.update_xaxes(tickformat="~s")
    return {name: figure for name, figure in found.items() if figure is not None}


Read = Callable[[Row], dict[int | None, Line]]
"""A cell -> its line for each layer; layer None = of the whole, or the mean over layers."""


def _curve(axis: str) -> Read:
    return lambda row: {None: {point[axis]: point["loss"] for point in row["curve"]}}


def _course(name: str) -> Read:
    def read(row: Row) -> dict[int | None, Line]:
        points = [point for point in row["curve"] if point["layers"]]
        lines: dict[int | None, Line] = {
            i: {point["step"]: point["layers"][i][name] for point in points}
            for i in range(len(row["layers"]))
        }
        return _with_mean(lines) if points else {}

    return read


def _with_mean(lines: dict[int | None, Line]) -> dict[int | None, Line]:
    some = next(iter(lines.values()), {})
    return {None: {x: fmean(line[x] for line in lines.values()) for x in some}, **lines}


def _agreement(row: Row) -> dict[int | None, Line]:
    pairs = [pair["normalised"] for pair in row["agreement"]]
    return {None: {f"{i + 1} and {i + 2}": v for i, v in enumerate(pairs)}} if pairs else {}


def _specialisation(row: Row) -> dict[int | None, Line]:
    found = [layer["specialisation"]["normalised"] for layer in row["layers"]]
    return {None: {f"{i + 1}": v for i, v in enumerate(found)}} if found else {}


def _drops(name: str) -> Read:
    def read(row: Row) -> dict[int | None, Line]:
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
    found = row.get("loss_by_position")
    return {None: dict(zip(QUARTERS, found, strict=True))} if found else {}


def _lines(sheets: Sequence[RouterSheet], read: Read, x: str, y: str) -> Figure | None:
    names, shapes = names_of(sheets), [SYMBOLS[look.symbol] for look in looks(sheets)]
    traces: list[Any] = []
    for number, sheet in enumerate(sheets):
        for one in sheet.contenders:
            group = names.index(one.name)
            for trace in _of(one, read, {"sheet": number, "group": group}):
                trace.marker.symbol = shapes[group]
                traces.append(trace)
    if not traces:
        return None
    figure = figure_of(traces)
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    figure.update_layout(hovermode="closest")
    return figure


def _of(one: RouterResults, read: Read, about: dict[str, Any]) -> Iterator[Any]:
    found = {row["seed"]: read(row) for row in one.rows}
    lines = {seed: of for seed, of in found.items() if of}
    if not lines:
        return
    for layer in next(iter(lines.values())):
        seeds = {seed: of[layer] for seed, of in lines.items()}
        yield _trace(_mean(list(seeds.values())), safe(one.name), about | _at(layer, None))
        for seed, line in seeds.items() if len(seeds) > 1 else ():
            yield _trace(line, f"{safe(one.name)}, seed {seed}", about | _at(layer, seed))


def _at(layer: int | None, seed: int | None) -> dict[str, int | None]:
    return {"layer": layer, "seed": seed}


def _mean(lines: Sequence[Line]) -> Line:
    """Point by point: seeds differ in what was spent by then, so x is a mean, too."""
    points = zip(*(line.items() for line in lines), strict=False)
    return {_middle([x for x, _ in point]): fmean(y for _, y in point) for point in points}


def _middle(xs: Sequence[Any]) -> Any:
    return xs[0] if isinstance(xs[0], str) or len(set(xs)) == 1 else fmean(xs)


def _trace(line: Line, name: str, about: dict[str, Any]) -> Any:
    one = about["seed"] is not None
    return plotly().Scatter(
        x=list(line),
        y=[float(f"{value:.5g}") for value in line.values()],
        name=name,
        mode="lines" if one else "lines+markers",
        line={"width": 1 if one else 2},
        marker={"size": 7},
        opacity=0.45 if one else 1,
        hovertemplate="%{y:.4g} at %{x}<extra>%{fullData.name}</extra>",
        meta=about,
    )


def _maps(sheets: Sequence[RouterSheet]) -> Figure | None:
    """Experts by classes: of the tokens of a class, the share that each expert has first."""
    names = names_of(sheets)
    traces = [
        _heat(layer, one.rows[0], {"sheet": n, "group": names.index(one.name), "layer": i})
        for n, sheet in enumerate(sheets)
        for one in sheet.contenders
        for i, layer in enumerate(one.rows[0]["layers"])
    ]
    if not traces:
        return None
    figure = figure_of(traces)
    figure.update_xaxes(automargin=False, side="top")
    figure.update_yaxes(automargin=False, autorange="reversed")
    figure.update_layout(hovermode="closest")
    return figure


def _heat(layer: Row, row: Row, about: dict[str, Any]) -> Any:
    counts: list[list[int]] = layer["table"]
    if not sum(counts[-1]):  # no token is without an expert
        counts = counts[:-1]
    kept = [j for j in range(len(row["classes"])) if any(line[j] for line in counts)]
    total = {j: sum(line[j] for line in counts) for j in kept}
    shares = [[round(100 * line[j] / total[j], 1) for j in kept] for line in counts]
    ticks = [safe(short(row["classes"][j])) for j in kept]
    experts = [str(i + 1) for i in range(layer["experts"])]
    rows = [*experts, "none"][: len(counts)]
    return heat(
        shares,
        about | {"seed": None, "ticks": ticks, "rows": rows},
        zmin=0,
        zmax=100,
        texttemplate="%{z:.0f}",
        text=[[f"{line[j]:,} of {total[j]:,}" for j in kept] for line in counts],
        hovertemplate="%{z} %, %{text}<extra></extra>",
    )
