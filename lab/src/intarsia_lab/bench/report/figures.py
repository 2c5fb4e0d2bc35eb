"""The benchmark's interactive plots: accuracy against cost, and tasks by methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from intarsia.results import numbers, plots, statistics
from intarsia.results.sheet import Spread

from .records import MethodName, RunResult, TaskName
from .sheets import SuiteSheet
from .summary import Findings, Means, MethodRow
from .tables import mean_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LONGEST = 28  # letters of a task on an axis
Shown = Mapping[str, Any]  # what a click tells of a run


def looks(findings: Findings) -> list[plots.Look]:
    """One for each row: grey for the baseline."""
    methods = [row.method for row in findings.rows]
    base = findings.baseline
    return plots.looks_of(len(methods), methods.index(base) if base else None)


def by_cost(findings: Findings, cost: str) -> Figure | None:
    """Accuracy over the shared tasks against "trained" (with head) or "seconds"; both means.

    A trace's meta says which mean it shows: "group" or "task".
    """
    rows = [(i, row) for i, row in enumerate(findings.rows) if row.shared and row.costs]
    if len(rows) < 2:
        return None
    draw = plots.against_seconds if cost == "seconds" else plots.against_parameters
    dressed = looks(findings)
    traces: list[Any] = []
    figure = None
    for mean in ("group", "task"):
        figure = draw([_points(findings, row, dressed[i], cost, mean) for i, row in rows])
        for trace in cast(Iterable[Any], figure.data):
            trace.meta = {"group": rows[trace.meta["group"]][0], "mean": mean}
            traces.append(trace)
    assert figure is not None
    whole = plots.figure_of(traces)
    whole.layout = figure.layout
    return whole


def _points(
    findings: Findings, row: MethodRow, look: plots.Look, cost: str, mean: str
) -> plots.Points:
    sheet, number = findings.sheet, findings.sheet.arms.index(row.method)
    shared, begun = sheet.shared, sheet.begun[number]
    accuracy = sheet.accuracy[number, shared][:, begun]
    tasks = [task.group for task, kept in zip(sheet.tasks, shared, strict=True) if kept]
    weight = statistics.weights(tasks) if mean == "group" else np.full(len(tasks), 1 / len(tasks))
    costs = sheet.values(cost)[number, shared][:, begun].mean(0)
    spread: Spread = getattr(row.shared, mean)
    return plots.Points(
        label=row.method.label,
        look=look,
        x=costs.tolist(),
        y=(accuracy * weight[:, None]).sum(0).tolist(),
        names=[f"seed {seed}" for seed, kept in zip(sheet.seeds, begun, strict=True) if kept],
        spread=spread,
    )


def heat(findings: Findings, show: Callable[[RunResult], Shown]) -> Figure:
    """Means of groups and suite, and each task, by method: two traces, of differences and shares.

    A trace's meta tells its mode; the first one's has, for every cell, what a click shows of each
    of its runs.
    """
    lines = _lines(findings)
    methods = [row.method for row in findings.rows]
    names = [(plots.safe(plots.short(name, LONGEST)), bold) for name, bold, _, _ in lines]
    ticks = [f"<b>{name}</b>" if bold else name for name, bold in names]
    shares = np.array(
        [[np.nan if s is None else s.mean for s in spreads] for _, _, spreads, _ in lines]
    )
    runs = [
        [_runs(findings.sheet, m, task, show) for m in methods] if task else [[]] * len(methods)
        for _, _, _, task in lines
    ]
    about = {
        "ticks": ticks,
        "names": [name for name, _, _, _ in lines],
        "methods": [plots.safe(plots.short(m.label)) for m in methods],
        "labels": [m.label for m in methods],
    }
    filled = [[bool(cell) for cell in row] for row in runs]
    traces = [_heat(shares, "shares", about, filled)]
    if findings.baseline is not None:
        base = shares[:, methods.index(findings.baseline)][:, None]
        traces.insert(0, _heat(shares - base, "differences", about, filled, shares))
    traces[0].meta = {**traces[0].meta, "runs": runs}
    figure = plots.figure_of(traces)
    figure.update_xaxes(automargin=False, side="top", tickangle=-40)
    figure.update_yaxes(automargin=False, autorange="reversed")
    figure.update_layout(hovermode="closest")
    # a cell without a number has no place for text of its own
    figure.update_layout(
        annotations=[
            {
                "x": j,
                "y": i,
                "text": "failed"
                if any(run["text"].startswith("failed") for run in cell)
                else "part",
                "showarrow": False,
                "captureevents": False,
            }
            for i, row in enumerate(runs)
            for j, cell in enumerate(row)
            if cell and np.isnan(shares[i, j])
        ]
    )
    return figure


Line = tuple[str, bool, list[Spread | None], TaskName | None]


def _lines(findings: Findings) -> list[Line]:
    """Rows of the map: name, whether a mean, a spread for each method, and its task, if any."""
    sheet, rows = findings.sheet, findings.rows

    found: list[Line] = [
        (name, True, [_part(row.whole, kind) for row in rows], None)
        for name, kind in (("Group mean", "group"), ("Task mean", "task"))
    ]
    for name, inside in sheet.groups().items():
        tasks = [task for task, kept in zip(sheet.tasks, inside, strict=True) if kept]
        if 1 < len(tasks) < len(sheet.tasks):
            found.append((name, True, [mean_of(sheet, row.method, inside) for row in rows], None))
        for task in tasks:
            own = [mean_of(sheet, row.method, _only(sheet, task)) for row in rows]
            found.append((task.name, False, own, task))
    return found


def _part(means: Means | None, kind: str) -> Spread | None:
    return None if means is None else getattr(means, kind)


def _only(sheet: SuiteSheet, task: TaskName) -> np.ndarray:
    return np.array([other == task for other in sheet.tasks])


def _heat(
    values: np.ndarray,
    mode: str,
    about: Mapping[str, Any],
    filled: list[list[bool]],
    shares: np.ndarray | None = None,
) -> Any:
    points = 100 * values

    def shown(value: float) -> str:
        if np.isnan(value):
            return ""
        return numbers.signed(value) if mode == "differences" else f"{value:.1f}"

    def told(i: int, j: int) -> str:
        name, method = plots.safe(about["names"][i]), plots.safe(about["labels"][j])
        share = values[i, j] if shares is None else shares[i, j]
        if np.isnan(share):
            return f"{name}<br>{method}<br>not complete"
        text = f"{name}<br>{method}<br>{numbers.percent(float(share), 2)}"
        if mode == "differences" and not np.isnan(values[i, j]):
            text += f", {numbers.signed(float(points[i, j]), 2)} points to the baseline"
        return text + ("<br>click for its runs" if filled[i][j] else "")

    rows, columns = values.shape
    return plots.heat(
        [[None if np.isnan(v) else float(v) for v in row] for row in points],
        {"mode": mode, **about},
        text=[[shown(float(v)) for v in row] for row in points],
        customdata=[[told(i, j) for j in range(columns)] for i in range(rows)],
        hoverongaps=True,
        **plots.TOLD,
    )


def _runs(
    sheet: SuiteSheet, method: MethodName, task: TaskName, show: Callable[[RunResult], Shown]
) -> list[Shown]:
    """What to show of each run of a cell."""
    found = (sheet.results.get((method, task, seed)) for seed in sheet.seeds)
    return [show(result) for result in found if result is not None]
