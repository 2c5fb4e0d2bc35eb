"""The benchmark's figures: accuracy against cost, and tasks by methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from intarsia.reports import charts, heat_maps, numbers, statistics
from intarsia.reports.looks import Look, looks_of, short
from intarsia.reports.report import Figure, Panels
from intarsia.reports.sheet import Spread

from .records import MethodName, RunResult, TaskName
from .sheets import SuiteSheet
from .summary import Findings, Means, MethodRow
from .tables import mean_of

LONGEST = 28  # letters of a task on an axis
WITHIN = 0.9  # of the differences have a colour of their own; one outlier does not bleach them
Shown = Mapping[str, Any]  # what a click tells of a run


def looks(findings: Findings) -> list[Look]:
    """Return a colour and symbol for each method of a sheet: grey for the baseline."""
    methods = [row.method for row in findings.rows]
    base = findings.baseline
    return looks_of(len(methods), methods.index(base) if base else None)


def by_cost(findings: Findings, number: int, cost: str) -> Figure | None:
    """Draw accuracy over the shared tasks against a cost; None if fewer than two methods have it.

    findings: statistics of a sheet (one suite, model and protocol); number: of the sheet; cost:
    "trained" (parameters, with head) or "seconds" of training.
    """
    points = points_of(findings, number, cost)
    if not points:
        return None
    against = "training time" if cost == "seconds" else "trained parameters"
    label = f"Accuracy against {against}; the numbers are in the table of results"
    drawing = charts.by_cost(points, "Accuracy", seconds=cost == "seconds")
    name = "time" if cost == "seconds" else "parameters"
    return Figure(f"{name}-{number}", label, drawing, f"Against {against}")


def points_of(findings: Findings, number: int, cost: str) -> list[charts.Points]:
    """Return the points of each method for the figure of accuracy against cost.

    For both kinds of mean over tasks; [] if fewer than two methods have the cost. findings:
    statistics of a sheet (one suite, model and protocol); number: of the sheet; cost: attribute of
    a result.
    """
    rows = [(i, row) for i, row in enumerate(findings.rows) if row.shared and row.costs]
    if len(rows) < 2:
        return []
    shapes = looks(findings)
    return [
        _points(findings, row, shapes[i], cost, {f"group-{number}": i, f"mean-{number}": mean})
        for mean in ("group", "task")
        for i, row in rows
    ]


def _points(
    findings: Findings, row: MethodRow, look: Look, cost: str, conditions: dict[str, str | int]
) -> charts.Points:
    """Return a method's points in the figure of accuracy against cost, one for each seed."""
    *_, mean = conditions.values()
    sheet, number = findings.sheet, findings.sheet.arms.index(row.method)
    shared, begun = sheet.shared, sheet.begun[number]
    # (shared tasks, begun seeds)
    accuracy = sheet.accuracy[number, shared][:, begun]
    tasks = [task.group for task, included in zip(sheet.tasks, shared, strict=True) if included]
    # in the group mean all groups weigh the same
    weight = statistics.weights(tasks) if mean == "group" else np.full(len(tasks), 1 / len(tasks))
    costs = sheet.values(cost)[number, shared][:, begun].mean(0)
    # the large mark: mean and spread over seeds
    spread: Spread = getattr(row.shared, str(mean))
    return charts.Points(
        label=row.method.label,
        look=look,
        x=costs.tolist(),
        y=(accuracy * weight[:, None]).sum(0).tolist(),
        names=[
            f"seed {seed}" for seed, included in zip(sheet.seeds, begun, strict=True) if included
        ],
        spread=spread,
        when=conditions,
    )


Line = tuple[str, bool, list[Spread | None], TaskName | None]


def heat(
    findings: Findings, number: int, show: Callable[[RunResult], Shown]
) -> tuple[list[Figure], Panels]:
    """Draw the map of tasks by methods: accuracies, and differences to the baseline.

    findings: statistics of a sheet (one suite, model and protocol); number: of the sheet; show:
    describes a run for the page. Returns a figure for each mode, and what a click on a cell
    displays of its runs.
    """
    rows = _lines(findings)
    methods = [row.method for row in findings.rows]
    shares = np.array(
        [[np.nan if s is None else s.mean for s in spreads] for _, _, spreads, _ in rows]
    )
    # a panel for each cell with runs, found by (row, method)
    panels: list[tuple[str, tuple[Shown, ...]]] = []
    places: dict[tuple[int, int], int] = {}
    for i, (name, _, _, task) in enumerate(rows):
        for j, method in enumerate(methods):
            runs = _runs(findings.sheet, method, task, show) if task else ()
            if runs:
                places[i, j] = len(panels)
                panels.append((f"{method.label} on {name}", runs))
    figures: list[Figure] = []
    # without a baseline there is nothing to take a difference from
    modes = ("differences", "shares") if findings.baseline is not None else ("shares",)
    for mode in modes:
        cells = _cells(findings, rows, shares, mode, places, panels)
        label = "Tasks by methods; the numbers are in the table below"
        caption = (
            "Means over seeds; in bold means over tasks. Empty: not run with all seeds. A click on "
            "a task shows its runs."
        )
        # shown for the mode that is chosen on the page
        conditions: dict[str, str | int] = {f"mode-{number}": mode} if len(modes) > 1 else {}
        figures.append(
            Figure(f"heat-{number}-{mode}", label, cells, caption=caption, when=conditions)
        )
    hint = "Click on a task of the map to see its runs."
    return figures, Panels(f"heat-{number}", hint, tuple(panels))


def _cells(
    findings: Findings,
    rows: Sequence[Line],
    shares: np.ndarray,
    mode: str,
    places: Mapping[tuple[int, int], int],
    panels: Sequence[tuple[str, tuple[Shown, ...]]],
) -> heat_maps.HeatMap:
    """Return the heat map of one mode, "differences" or "shares".

    shares: (rows, methods), accuracy 0 to 1; places: (row, method) -> index of a panel.
    """
    methods = [row.method for row in findings.rows]
    points = 100 * shares
    if mode == "differences":
        points = points - points[:, [methods.index(findings.baseline)]]  # type: ignore[arg-type]

    def text_of(i: int, j: int) -> str:
        """Return the text in the cell of task i and method j: its number, "failed" or "part"."""
        if not np.isnan(points[i, j]):
            value = float(points[i, j])
            return numbers.signed(value) if mode == "differences" else f"{value:.1f}"
        runs = panels[places[i, j]][1] if (i, j) in places else ()
        failed = any("failed" in str(run["text"]) for run in runs)
        return "failed" if failed else "part" if runs else ""

    def hover_of(i: int, j: int) -> str:
        """Return the text that appears when the pointer is over the cell of task i and method j."""
        head = f"{rows[i][0]}, {methods[j].label}: "
        if np.isnan(shares[i, j]):
            return head + "not complete"
        text = head + numbers.percent(float(shares[i, j]), 2)
        if mode == "differences" and not np.isnan(points[i, j]):
            text += f", {numbers.signed(float(points[i, j]), 2)} points to the baseline"
        return text + ("; click for its runs" if (i, j) in places else "")

    # the scale of colours: most differences, so that one outlier does not bleach the others
    finite = points[~np.isnan(points)]
    low = float(finite.min()) if finite.size else 0.0
    sizes = np.sort(np.abs(finite[finite != 0]))
    top = max(0.1, float(sizes[int(WITHIN * (len(sizes) - 1))]) if sizes.size else 0.1)
    # from the lowest to the highest share; differences are coloured around 0
    if mode == "shares":  # the lowest share is the lightest
        top = max(0.1, float(finite.max()) - low) if finite.size else 1.0
    shift = low if mode == "shares" else 0.0
    across, down = range(len(methods)), range(len(rows))
    return heat_maps.HeatMap(
        [[None if np.isnan(v) else float(v) - shift for v in row] for row in points],
        [short(name, LONGEST) for name, _, _, _ in rows],
        [short(method.label) for method in methods],
        top,
        [[hover_of(i, j) for j in across] for i in down],
        [[text_of(i, j) for j in across] for i in down],
        diverging=mode == "differences",
        panel=places,
        strong=frozenset(i for i, row in enumerate(rows) if row[1]),
        width=1080,
    )


def _lines(findings: Findings) -> list[Line]:
    """Return the rows of the heat map: means first, then each group with its tasks."""
    sheet, rows = findings.sheet, findings.rows

    lines: list[Line] = [
        (name, True, [_part(row.whole, kind) for row in rows], None)
        for name, kind in (("Group mean", "group"), ("Task mean", "task"))
    ]
    for name, inside in sheet.groups().items():
        tasks = [task for task, included in zip(sheet.tasks, inside, strict=True) if included]
        # a group of one task, or of all, would repeat another row
        if 1 < len(tasks) < len(sheet.tasks):
            lines.append((name, True, [mean_of(sheet, row.method, inside) for row in rows], None))
        for task in tasks:
            means = [mean_of(sheet, row.method, _only(sheet, task)) for row in rows]
            lines.append((task.name, False, means, task))
    return lines


def _part(means: Means | None, kind: str) -> Spread | None:
    """Return one kind of mean, "group" or "task"; None where a method has no means."""
    return None if means is None else getattr(means, kind)


def _only(sheet: SuiteSheet, task: TaskName) -> np.ndarray:
    """Return the mask of one task, (tasks,) bool."""
    return np.array([candidate == task for candidate in sheet.tasks])


def _runs(
    sheet: SuiteSheet, method: MethodName, task: TaskName, show: Callable[[RunResult], Shown]
) -> tuple[Shown, ...]:
    """Return what a click displays of each run of a task and method."""
    results = (sheet.results.get((method, task, seed)) for seed in sheet.seeds)
    return tuple(show(result) for result in results if result is not None)
