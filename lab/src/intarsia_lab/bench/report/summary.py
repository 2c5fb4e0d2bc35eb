"""A benchmark's results in numbers: means, spreads, costs and differences to a baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from intarsia.reports import statistics
from intarsia.reports.sheet import Differences, Spread, suite_mean

from .records import Done, MethodName, RunResult, only
from .sheets import SuiteSheet, find, sheets

BESIDE = {
    "balanced": "balanced_accuracy",
    "loss": "loss",
    "tempered": "tempered_loss",
    "ece": "ece",
}  # what stands next to accuracy, and where a result has it


@dataclass(frozen=True)
class Means:
    """Accuracy over the same tasks in two ways.

    group: mean over groups of the means over a group's tasks.  task: plain mean over tasks.
    own: plain mean over joint tasks of the accuracy among the classes of an image's own task, None
    where no task is joint.  balanced, loss, tempered, ece: plain means over tasks of balanced
    accuracy, of the loss, of the loss after one temperature, and of the calibration error.
    """

    group: Spread
    task: Spread
    own: Spread | None = None
    balanced: Spread | None = None
    loss: Spread | None = None
    tempered: Spread | None = None
    ece: Spread | None = None


@dataclass(frozen=True)
class MeanCosts:
    """Means over tasks and seeds; `peak_bytes` is the largest.  None = not known."""

    trained: float
    trained_without_head: float
    seconds: float
    cpu_seconds: float | None
    peak_bytes: int | None


@dataclass(frozen=True, eq=False)
class MethodRow:
    """A method of a sheet.

    complete: tasks with all of its seeds.  whole: its means, None unless all tasks are complete.
    shared: over the tasks that all methods have completed, costs too, None without any.
    p: of the difference, corrected by Holm.  rank: on the shared tasks.
    """

    method: MethodName
    complete: int
    whole: Means | None
    shared: Means | None
    costs: MeanCosts | None
    difference: Differences | None
    p: float | None
    rank: float | None

    @property
    def ppt(self) -> float | None:
        """The performance discounted by trained parameters; None without a group mean."""
        if self.whole is None or self.costs is None:
            return None
        return statistics.ppt(self.whole.group.mean, self.costs.trained_without_head)


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything about one sheet; rows are ordered by the mean over shared tasks, best first."""

    sheet: SuiteSheet
    rows: tuple[MethodRow, ...]
    baseline: MethodName | None
    ranking: statistics.Ranking | None

    @property
    def ragged(self) -> bool:
        """True if a method lacks a task."""
        return any(row.complete < len(self.sheet.tasks) for row in self.rows)

    def row(self, method: MethodName) -> int:
        """Return the index of a method in the arrays of the sheet."""
        return self.sheet.arms.index(method)


@dataclass(frozen=True, eq=False)
class Summary:
    """Findings of each sheet, and all results in a fixed order."""

    findings: tuple[Findings, ...]
    results: tuple[RunResult, ...]

    @property
    def failed(self) -> list[RunResult]:
        """Results without a score."""
        return only(self.results, "failed")


def tables(
    records: Iterable[RunResult], baseline: str | None = None, runs: Path | None = None
) -> Summary:
    """Return the statistics of results, one for each combination of suite, protocol and backbone.

    records: results of runs; baseline: name or label of the method that the others are compared
    with, None = without: a sheet that has no result of it gets no differences; runs: the folder
    that results name their runs from, which is read where a sheet has one task.

    Raises: DataError as `sheets` does; UnknownName for a baseline that is in no sheet; MissingExtra
    without statsmodels.
    """
    by_title = sheets(records, runs)
    # by name in all sheets, even if it was asked for by its label
    base = None
    if baseline is not None:
        base = find((m for sheet in by_title for m in sheet.arms), baseline).name
    # the same results in any order give the same page
    ordered = sorted(
        (result for sheet in by_title for result in sheet.results.values()),
        key=lambda r: (r.task, r.setup.protocol, r.setup.model, r.method, r.seed),
    )
    return Summary(tuple(findings_of(sheet, base) for sheet in by_title), tuple(ordered))


def findings_of(sheet: SuiteSheet, baseline: str | None) -> Findings:
    """Return the statistics of one sheet: a row for each method, best first, and the ranking.

    baseline: name of a method, which may be missing in this sheet.
    """
    # a sheet without the baseline has no differences, and is no error
    base = next((m for m in sheet.arms if m.name == baseline), None)
    rows = [_row(sheet, number, base) for number in range(len(sheet.arms))]
    # Holm's correction for as many comparisons as there are methods
    corrected = statistics.holm([row.difference.p if row.difference else None for row in rows])
    ranks, ranking = _ranks(sheet)
    rows = [
        replace(row, p=p, rank=rank) for row, p, rank in zip(rows, corrected, ranks, strict=True)
    ]
    return Findings(sheet, tuple(sorted(rows, key=_place)), base, ranking)


def _place(row: MethodRow) -> tuple[float, str, str]:
    """Return what rows are sorted by: the best mean first, then the label."""
    mean = row.shared or row.whole
    return -mean.group.mean if mean else math.inf, row.method.label, row.method.name


def _row(sheet: SuiteSheet, number: int, base: MethodName | None) -> MethodRow:
    """Compute a method's row: means, costs, and its difference to the baseline."""
    method, complete = sheet.arms[number], sheet.complete[number]
    difference = None
    if base is not None and method != base:
        difference = sheet.minus(method, base, "accuracy")
    # costs are compared over the tasks that all methods have
    shared = sheet.shared & complete
    return MethodRow(
        method=method,
        complete=int(complete.sum()),
        whole=means_of(sheet, number, complete) if complete.all() else None,
        shared=means_of(sheet, number, shared) if shared.any() else None,
        costs=_costs(sheet, number, shared),
        difference=difference,
        p=None,
        rank=None,
    )


def means_of(sheet: SuiteSheet, number: int, tasks: np.ndarray) -> Means:
    """Return a method's means over some tasks, all of them complete.

    sheet: results of one suite, backbone and protocol; number: index of the method; tasks: (tasks,)
    bool.
    """
    accuracy = sheet.accuracy[number]
    names = [task.group for task, included in zip(sheet.tasks, tasks, strict=True) if included]
    own_accuracy = sheet.values("own_task_accuracy")[number]
    # tasks that are several in one label space, which alone have this accuracy
    joint = tasks & ~np.isnan(own_accuracy).all(axis=1)
    secondary = {name: sheet.values(field)[number, tasks] for name, field in BESIDE.items()}
    # a measure that some run lacks has no mean, rather than one over fewer runs
    means = {name: suite_mean(v) for name, v in secondary.items() if _every(v)}
    return Means(
        group=suite_mean(accuracy[tasks], statistics.weights(names)),
        task=suite_mean(accuracy[tasks]),
        own=suite_mean(own_accuracy[joint]) if joint.any() else None,
        **means,
    )


def _every(scores: np.ndarray) -> bool:
    """Return True if every task has a score for each seed that any task has.

    scores: (tasks, seeds), NaN where there is none.
    """
    present = ~np.isnan(scores)
    return bool(present.any() and present[:, present.any(0)].all())


def _costs(sheet: SuiteSheet, number: int, tasks: np.ndarray) -> MeanCosts | None:
    """Return a method's costs: means over tasks of the means over seeds.

    tasks: (tasks,) bool, those to count.
    """

    def mean(name: str) -> float | None:
        values = statistics.task_means(sheet.values(name)[number, tasks])
        return None if np.isnan(values).any() else math.fsum(values) / len(values)

    if not tasks.any():
        return None
    trained, bare, seconds = mean("trained"), mean("trained_without_head"), mean("seconds")
    assert trained is not None and bare is not None and seconds is not None
    # the largest, not a mean: a run has to fit into memory
    peak = sheet.values("peak_bytes")[number, tasks]
    largest = None if np.isnan(peak).all() else int(np.nanmax(peak))
    return MeanCosts(trained, bare, seconds, mean("cpu_seconds"), largest)


def trials_of(sheet: SuiteSheet) -> set[int]:
    """Return the numbers of runs among which settings were chosen; 0 = they were set by hand.

    More than one number means that methods were tuned unequally. sheet: the results of one suite,
    backbone and protocol.
    """
    done = (result for result in sheet.results.values() if isinstance(result.outcome, Done))
    return {result.setup.tried for result in done}


def _ranks(sheet: SuiteSheet) -> tuple[list[float | None], statistics.Ranking | None]:
    """Return each method's average rank over the shared tasks, and Friedman's test of the ranks."""
    # who tried more settings would rank higher by chance
    if len(trials_of(sheet)) > 1:
        return [None] * len(sheet.arms), None
    ranked = sheet.complete.any(1) if sheet.shared.any() else np.zeros(len(sheet.arms), bool)
    average_ranks: list[float | None] = [None] * len(sheet.arms)
    if not ranked.any():
        return average_ranks, None
    # (methods, tasks): each task ranks all methods by its mean over seeds
    means = statistics.task_means(sheet.accuracy[ranked][:, sheet.shared])
    average = statistics.ranks(means).mean(1)
    for number, rank in zip(np.flatnonzero(ranked), average, strict=True):
        average_ranks[number] = float(rank)
    return average_ranks, statistics.ranking(means)
