"""The tables of a sheet, for every form: results, differences to the baseline, and each task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from intarsia.reports import numbers, statistics
from intarsia.reports.sheet import Spread, suite_mean
from intarsia.reports.table import Column, Entry, Table

from .records import Failed, MethodName, TaskName
from .sentences import heading, notes, over_seeds
from .sheets import SuiteSheet
from .summary import Findings, MethodRow

NONE = Entry("\N{EN DASH}")
METHOD = Column("Method", "What was trained", numeric=False)


@dataclass(frozen=True)
class Field:
    """A column, a row's cell in it, and the value that decides who is first, if anybody is."""

    column: Column
    cell: Callable[[MethodRow], Entry]
    value: Callable[[MethodRow], float | None] | None = None


def results_table(findings: Findings) -> Table:
    """Return a row for every method: both means, balanced accuracy, loss, and costs.

    findings: statistics of a sheet (one suite, model and protocol).
    """
    fields = [
        Field(METHOD, lambda row: Entry(row.method.label)),
        *_means(findings),
        *_beside(findings),
        *_costs(findings),
    ]
    caption = f"Accuracy in %, {over_seeds(findings)}. {_places(findings.rows)}".strip()
    return _table(findings, fields, caption, notes(findings))


def difference_table(findings: Findings) -> Table | None:
    """Return a row for every method but the baseline, with its paired differences.

    findings: statistics of a sheet (one suite, model and protocol). None without a baseline, or
    with no other method.
    """
    base = findings.baseline
    if base is None or len(findings.rows) < 2:
        return None
    rows = [row for row in findings.rows if row.method != base]
    columns = (
        METHOD,
        Column(
            "Task mean",
            f"Accuracy minus that of {base.label}, percentage points: mean over "
            "tasks of the means over pairs of the same task and seed",
        ),
        Column("95 % interval", _interval_meaning(findings.sheet)),
        Column("Group mean", "The same difference as a mean over groups of tasks"),
        Column("Tasks", "On how many it was ahead, equal and behind"),
        Column("Pairs", "Number of pairs of the same task and seed"),
        Column("p", "Wilcoxon's signed-rank test across tasks, two-sided"),
        Column("p, Holm", "The same, corrected for the number of methods in this table"),
        Column("Rank", "Average rank over the tasks that all methods share, 1 = best"),
    )
    lines = tuple(_difference(findings.sheet, row) for row in rows)
    baseline_rank = next(row.rank for row in findings.rows if row.method == base)
    # the baseline has no row of its own: its rank stands below the table
    below = (
        []
        if baseline_rank is None
        else [f"The average rank of {base.label} is {baseline_rank:.2f}."]
    )
    # Wilcoxon's least p for n tasks is 2 / 2^n: 0.06 for five
    too_few = len(findings.sheet.tasks) < 6
    below += _missing(findings)
    below += ["With fewer than six tasks Wilcoxon's p cannot get below 0.05."] if too_few else []
    caption = f"Paired differences to {base.label}, in percentage points."
    return Table(caption, columns, lines, None, None, tuple(below))


def _interval_meaning(sheet: SuiteSheet) -> str:
    """Return the sentence on how intervals of differences were computed."""
    if len(sheet.tasks) == 1:
        return "Over the task's test pictures and the seeds together"
    return (
        "Percentile bootstrap of the task mean: tasks drawn with replacement, then their seeds; "
        f"{statistics.RESAMPLES:,} draws"
    )


def _missing(findings: Findings) -> list[str]:
    """Return sentences on why a difference on a single task has no interval; none if it has one."""
    sheet, base = findings.sheet, findings.baseline
    if base is None or len(sheet.tasks) > 1:
        return []
    rows = [row.method for row in findings.rows if row.difference]
    # one sentence for each reason, not for each method
    reasons = dict.fromkeys(sheet.over_items(method, base, "accuracy")[1] for method in rows)
    return [f"There is no interval: {reason}." for reason in reasons if reason]


def tasks_table(findings: Findings) -> Table:
    """Return a row for every task, below the mean of its group, and a column for every method.

    findings: statistics of a sheet (one suite, model and protocol).
    """
    sheet, methods = findings.sheet, [row.method for row in findings.rows]
    columns = [Column("Task", "A group of tasks, or one task", numeric=False)]
    columns += [Column(method.label, f"Accuracy of {method.label}, %") for method in methods]
    rows: list[tuple[Entry, ...]] = []
    for name, inside in sheet.groups().items():
        tasks = [task for task, included in zip(sheet.tasks, inside, strict=True) if included]
        # a group of one task, or of all, would repeat another row
        if len(tasks) > 1 and len(tasks) < len(sheet.tasks):
            means = [mean_of(sheet, method, inside) for method in methods]
            rows.append(_line(Entry(name, f"mean of {len(tasks)}", place="mean"), means))
        rows += [_task_line(sheet, methods, task) for task in tasks]
    # the means over all tasks stand last
    for title, kind in (("Group mean", "group"), ("Task mean", "task")):
        means_of_methods = [getattr(row.whole, kind, None) for row in findings.rows]
        rows.append(_line(Entry(title, place="mean"), means_of_methods))
    caption = f"Accuracy in % on each task, {over_seeds(findings)}."
    below = (
        (
            "Rendered or simulated, not photographed: "
            f"{', '.join(task.name for task in sheet.tasks if task.synthetic)}.",
        )
        if any(task.synthetic for task in sheet.tasks)
        else ()
    )
    return Table(caption, tuple(columns), tuple(rows), None, None, below)


def mean_of(sheet: SuiteSheet, method: MethodName, tasks: np.ndarray) -> Spread | None:
    """Return a method's mean accuracy over some tasks; None unless all are complete.

    sheet: results of one suite, backbone and protocol; tasks: (tasks,) bool.
    """
    number = sheet.arms.index(method)
    # a mean over other tasks than the others' would look comparable
    if not sheet.complete[number, tasks].all():
        return None
    return suite_mean(sheet.accuracy[number, tasks])


def tables_of(findings: Findings) -> list[tuple[str, Table]]:
    """Return all tables of a sheet that exist, with their titles.

    findings: statistics of the sheet.
    """
    titled = [
        ("Results", results_table(findings)),
        ("Differences", difference_table(findings)),
        ("Tasks", tasks_table(findings)),
    ]
    scope = heading(findings)
    return [(f"{title}: {scope}", table) for title, table in titled if table is not None]


def _table(
    findings: Findings, fields: Sequence[Field], caption: str, below: Iterable[str]
) -> Table:
    """Build a table with a line for each method."""
    columns = [_column(field, findings.rows) for field in fields]
    base = [row.method for row in findings.rows]
    return Table(
        caption=caption,
        columns=tuple(field.column for field in fields),
        rows=tuple(zip(*columns, strict=True)),
        best=None,
        baseline=base.index(findings.baseline) if findings.baseline else None,
        notes=tuple(below),
    )


def _column(field: Field, rows: Sequence[MethodRow]) -> list[Entry]:
    """Return a column's entries, the best marked where the field has a value to compare."""
    cells = [field.cell(row) for row in rows]
    return cells if field.value is None else placed(cells, [field.value(row) for row in rows])


def placed(cells: Sequence[Entry], shares: Sequence[float | None]) -> list[Entry]:
    """Mark the best entry of a row or column and the next best.

    cells: the entries; shares: their unrounded values, None = not compared. Entries that are
    displayed alike share a mark.
    """
    # by the number that is displayed: a difference that no one sees makes no winner
    rounded = [None if share is None else round(100 * share, 1) for share in shares]
    distinct = sorted({value for value in rounded if value is not None}, reverse=True)
    # a single entry is not the best of anything
    if sum(value is not None for value in rounded) < 2:
        return list(cells)
    place = dict(zip(distinct, ("first", "second"), strict=False))
    return [
        cell if value is None else replace(cell, place=place.get(value, ""))
        for cell, value in zip(cells, rounded, strict=True)
    ]


def _line(head: Entry, spreads: Sequence[Spread | None]) -> tuple[Entry, ...]:
    """Return a row of means, the best ones marked.  head: its first entry."""
    cells = [share(spread) for spread in spreads]
    return (head, *placed(cells, [spread and spread.mean for spread in spreads]))


def _task_line(
    sheet: SuiteSheet, methods: Sequence[MethodName], task: TaskName
) -> tuple[Entry, ...]:
    """Return a task's row: its name, and each method's mean accuracy over seeds, best ones
    marked.
    """
    column = sheet.tasks.index(task)
    cells: list[Entry] = []
    rated: list[float | None] = []  # a mean over fewer seeds is not held against the others
    for method in methods:
        number = sheet.arms.index(method)
        scores = sheet.accuracy[number, column]
        finished, expected = scores[~np.isnan(scores)].tolist(), int(sheet.begun[number].sum())
        cell = share(Spread.of(finished)) if finished else Entry(_why_not(sheet, method, task))
        if finished and len(finished) < expected:
            cell = replace(cell, remark=f"{len(finished)} of {expected} seeds")
        cells.append(cell)
        rated.append(sum(finished) / expected if len(finished) == expected else None)
    return (Entry(task.name), *placed(cells, rated))


def _why_not(sheet: SuiteSheet, method: MethodName, task: TaskName) -> str:
    """Return what stands where a method has no score on a task: "failed" or a dash."""
    results = [sheet.results.get((method, task, seed)) for seed in sheet.seeds]
    return "failed" if any(r and isinstance(r.outcome, Failed) for r in results) else NONE.text


def share(spread: Spread | None) -> Entry:
    """Return an accuracy in %, with its spread over seeds; a dash for None."""
    return NONE if spread is None else Entry(numbers.bare(spread), full=f"{spread.mean:.6f}")


def _means(findings: Findings) -> list[Field]:
    """Return the columns of suite means; where a method lacks tasks, over the shared tasks
    as well.
    """
    sheet, total = findings.sheet, len(findings.sheet.tasks)
    meanings = {
        "group": "Mean over groups of the means over a group's tasks",
        "task": "Plain mean over tasks",
    }
    # only joint tasks have an accuracy among the classes of a picture's own task
    if any(m and m.own for row in findings.rows for m in (row.whole, row.shared)):
        meanings["own"] = (
            "Among the classes of a picture's own task: plain mean over tasks that are several"
        )
    titles = {kind: f"{kind.capitalize()} mean" for kind in meanings} | {"own": "Own task"}

    def field(kind: str, part: str, title: str, meaning: str) -> Field:
        """Build the column of one kind of mean."""

        def spread(row: MethodRow) -> Spread | None:
            """Return this mean of a method."""
            return getattr(getattr(row, part), kind, None)

        def cell(row: MethodRow) -> Entry:
            """Return what the table displays of this mean."""
            if part == "whole" and row.whole is None:
                return Entry(f"{row.complete} of {total} tasks")
            return share(spread(row))

        # its value decides who is marked as best
        return Field(Column(title, meaning), cell, lambda row: (s := spread(row)) and s.mean)

    fields = [field(kind, "whole", titles[kind], meanings[kind]) for kind in meanings]
    # a method that lacks tasks has no mean over all: the shared tasks can be compared
    if findings.ragged:
        n = int(sheet.shared.sum())
        scope = f"the {numbers.plural(n, 'task')} that all methods have completed"
        fields += [
            field(kind, "shared", f"{titles[kind]}, {n} shared", f"{text}: {scope}")
            for kind, text in meanings.items()
        ]
    return fields


def _beside(findings: Findings) -> list[Field]:
    """Return the columns that do not rank: balanced accuracy, losses, calibration."""
    scope = ", over the shared tasks" if findings.ragged else ""

    def balanced(row: MethodRow) -> Entry:
        """Return the balanced accuracy of a method."""
        return share(row.shared and row.shared.balanced)

    def number(name: str, row: MethodRow) -> Entry:
        """Return another measure of a method, with three digits.  name: field of Means."""
        spread: Spread | None = row.shared and getattr(row.shared, name)
        return Entry(f"{spread.mean:.3f}", full=f"{spread.mean:.6f}") if spread else NONE

    right = "Mean over a task's classes of the share of right answers, %: plain mean over tasks"
    mean_loss = "Mean cross-entropy of the test part: plain mean over tasks"
    fields = [
        Field(Column("Balanced", f"{right}{scope}"), balanced),
        Field(Column("Loss", f"{mean_loss}{scope}"), partial(number, "loss")),
    ]
    calibrations = {
        "tempered": (
            "Tempered",
            "The same after one temperature that the validation part carries",
        ),
        "ece": ("ECE", "Expected calibration error, a share: plain mean over tasks"),
    }
    # calibration is there where runs had validation pictures for it
    for name, (title, meaning) in calibrations.items():
        if any(row.shared and getattr(row.shared, name) for row in findings.rows):
            fields.append(Field(Column(title, f"{meaning}{scope}"), partial(number, name)))
    return fields


def _costs(findings: Findings) -> list[Field]:
    """Return the columns of parameters, times and memory, without those that no run has
    measured.
    """
    scope = ", over the shared tasks" if findings.ragged else ""

    def field(title: str, meaning: str, render: Callable[[Any], Entry], name: str) -> Field:
        """Return a column of one cost."""
        column = Column(title, f"{meaning}{scope}")
        return Field(column, lambda row: render(row.costs and getattr(row.costs, name)))

    discount = (
        "Group mean times exp(-log10(P / 10 M + 1)), P the parameters without the head: accuracy "
        "after a discount for parameters"
    )
    without = "Trained outside the head: mean over tasks"
    peak = "What training took above the loaded model and pictures: the largest of all runs"
    time = "Training time of one run: mean over tasks and seeds"
    fields = [
        field("Parameters", without, _count, "trained_without_head"),
        field("With head", "Trained, with the head: mean over tasks", _count, "trained"),
        Field(Column("PPT", discount), lambda row: _ppt(row.ppt)),
        field("Time", time, _seconds, "seconds"),
        field("CPU time", "Processor seconds of the same, all cores", _seconds, "cpu_seconds"),
        field("Peak memory", peak, _size, "peak_bytes"),
    ]
    costs = [row.costs for row in findings.rows if row.costs]
    # older results and other machines have recorded neither
    unknown = {
        "CPU time": all(c.cpu_seconds is None for c in costs),
        "Peak memory": all(c.peak_bytes is None for c in costs),
    }
    return [field for field in fields if not unknown.get(field.column.title)]


def _count(n: float | None) -> Entry:
    return NONE if n is None else Entry(numbers.count(round(n)), full=f"{n:,.1f}")


def _ppt(value: float | None) -> Entry:
    """Return the discounted performance in %, a dash for None."""
    return NONE if value is None else Entry(f"{100 * value:.1f}", full=f"{value:.6f}")


def _seconds(value: float | None) -> Entry:
    return NONE if value is None else Entry(numbers.seconds(value), full=f"{value:.3f} s")


def _size(n: int | None) -> Entry:
    return NONE if n is None else Entry(numbers.size(n), full=f"{n:,} bytes")


def _difference(sheet: SuiteSheet, row: MethodRow) -> tuple[Entry, ...]:
    """Return a method's row in the table of differences to the baseline."""
    difference = row.difference
    rank = NONE if row.rank is None else Entry(f"{row.rank:.2f}")
    if difference is None:
        return (Entry(row.method.label), *[NONE] * 7, rank)
    # tasks that both methods have completed
    compared = ~np.isnan(difference.by_task)
    names = [task.group for task, included in zip(sheet.tasks, compared, strict=True) if included]
    # all groups weigh the same, however many tasks they have
    grouped = float(difference.by_task[compared] @ statistics.weights(names))
    # said where a method lacks tasks of the baseline
    fewer = "" if compared.all() else f"{int(compared.sum())} of {len(compared)} tasks"
    interval = (
        NONE if difference.interval is None else Entry(numbers.interval(*difference.interval, 2))
    )
    return (
        Entry(row.method.label),
        Entry(numbers.signed(100 * difference.mean, 2), fewer, f"{difference.mean:+.6f}"),
        interval,
        Entry(numbers.signed(100 * grouped, 2), full=f"{grouped:+.6f}"),
        Entry(" / ".join(map(str, difference.record))),
        Entry(str(difference.n)),
        _probability(difference.p),
        _probability(row.p),
        rank,
    )


def _probability(p: float | None) -> Entry:
    return NONE if p is None else Entry(numbers.probability(p), full=f"{p:.3g}")


def _places(rows: Sequence[MethodRow]) -> str:
    return "The best of each column is marked, and the second best." if len(rows) > 1 else ""
