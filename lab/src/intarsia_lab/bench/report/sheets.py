"""Results that may be compared: one suite, one protocol and one backbone make a sheet.

What stands in one sheet is never read in another, so no protocol can lend another its numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from intarsia.core.errors import DataError, UnknownName
from intarsia.reports.runs.items import RunItems, interval_of
from intarsia.reports.runs.reading import read_items
from intarsia.reports.sheet import Differences, Sheet
from intarsia.reports.statistics import PairedInterval
from intarsia.reports.wording import first_line

from .records import Done, Failed, MethodName, RunResult, TaskName


@dataclass(frozen=True, order=True)
class Title:
    """The suite, protocol and model that all results of a sheet share."""

    suite: str
    protocol: str
    model: str

    @classmethod
    def of(cls, result: RunResult) -> Title:
        """Return the suite, protocol and model of a result."""
        return cls(result.task.suite, result.setup.protocol, result.setup.model)


Key = tuple[MethodName, TaskName, int]


@dataclass(frozen=True, eq=False)
class SuiteSheet(Sheet[MethodName, TaskName, RunResult]):
    """Results by method, task and seed; tasks are ordered by group and name.

    runs: the folder that results name their runs from, for the items of a single task; None = they
    are not at hand.
    """

    title: Title
    runs: Path | None = None

    def minus(self, arm: MethodName, base: MethodName, name: str) -> Differences | None:
        """Return the paired differences of two methods in a measure; None without pairs.

        For a single task with the interval over test items and seeds. arm, base: the methods; name:
        of the measure.
        """
        differences = super().minus(arm, base, name)
        if differences is None or len(self.tasks) > 1:
            return differences
        # one task has no spread over tasks: its test items take that place
        return replace(differences, over_items=self.over_items(arm, base, name)[0])

    def over_items(
        self, arm: MethodName, base: MethodName, name: str
    ) -> tuple[PairedInterval | None, str]:
        """Return the interval of a difference over test items and seeds, or why there is none.

        For a sheet of a single task. arm, base: the two methods; name: of the measure. Either the
        interval and "", or None and the reason.
        """
        if self.runs is None:
            return None, "the folders of the runs are not at hand"
        return interval_of(self._items(arm), self._items(base), name)

    def _items(self, arm: MethodName) -> dict[int, RunItems | None]:
        """Return the predictions of a method's finished runs of the first task, by seed."""
        assert self.runs is not None
        done = {s: self.results.get((arm, self.tasks[0], s)) for s in self.seeds}
        return {
            seed: read_items(self.runs / result.folder)
            for seed, result in done.items()
            # a failed run has no predictions to pair
            if result is not None and isinstance(result.outcome, Done)
        }

    @cached_property
    def accuracy(self) -> np.ndarray:
        """(methods, tasks, seeds), shares; NaN where there is none."""
        return self.values("accuracy")

    @cached_property
    def complete(self) -> np.ndarray:
        """The mask of methods with all seeds they were begun with.  (methods, tasks), bool."""
        missing = np.isnan(self.accuracy) & self.begun[:, None, :]
        return np.asarray(~missing.any(axis=2))

    @cached_property
    def shared(self) -> np.ndarray:
        """Tasks that all methods have completed; one without any is not asked.  (tasks,), bool."""
        attempted = self.complete[self.complete.any(axis=1)]
        return np.asarray(attempted.all(axis=0)) & bool(len(attempted))

    def groups(self) -> dict[str, np.ndarray]:
        """Return the mask of the tasks of each group, (tasks,) bool, by the group's name."""
        names = np.array([task.group for task in self.tasks])
        return {str(name): names == name for name in np.unique(names)}


def sheets(results: Iterable[RunResult], runs: Path | None = None) -> tuple[SuiteSheet, ...]:
    """Sort results into sheets, one for each suite, protocol and model.

    The order of the results changes nothing. results: of runs; runs: the folder that results name
    their runs from, None = not at hand.

    Raises: DataError for none, for two results of one slot (method, task, seed), and for a task or
    method that is described in two ways.
    """
    grouped: dict[Title, dict[Key, RunResult]] = defaultdict(dict)
    for result in results:
        cell = (result.method, result.task, result.seed)
        first = grouped[Title.of(result)].setdefault(cell, result)
        if first is not result:
            # two runs of one seed would count as two samples
            subject = (
                f"results of {result.method.label!r} on {result.task.name!r}, seed {result.seed}"
            )
            got = f"two, in {first.folder!r} and {result.folder!r}"
            fix = "Leave one out: a repeat is no second sample."
            raise DataError(subject, got=got, want="one", fix=fix)
    if not grouped:
        raise DataError("results", got="none", want="at least one", fix="Run a cell first.")
    return tuple(_sheet(title, grouped[title], runs) for title in sorted(grouped))


def _sheet(title: Title, cells: Mapping[Key, RunResult], runs: Path | None) -> SuiteSheet:
    """Build the sheet of results that may be compared; methods, tasks and seeds are sorted.

    cells: (method, task, seed) -> result.
    """
    methods = sorted({method for method, _, _ in cells})
    tasks = sorted({task for _, task, _ in cells})
    _one_each("method", [m.name for m in methods], methods)
    _one_each("task", [t.name for t in tasks], tasks)
    seeds = sorted({seed for _, _, seed in cells})
    return SuiteSheet(
        arms=tuple(methods),
        tasks=tuple(tasks),
        seeds=tuple(seeds),
        results=dict(cells),
        read=lambda result, name: getattr(result.outcome, name, None),
        title=title,
        runs=runs,
    )


def _one_each(kind: str, names: Sequence[str], descriptions: Sequence[object]) -> None:
    """Check that each name has one description.  Raises: DataError."""
    for name in set(names):
        matching = [
            description for description, n in zip(descriptions, names, strict=True) if n == name
        ]
        if len(matching) > 1:
            subject = f"{kind} {name!r}"
            fix = f"Give the two {kind}s different names, or leave one out."
            raise DataError(
                subject, got=f"{matching[0]} and {matching[1]}", want="one description", fix=fix
            )


def find(methods: Iterable[MethodName], name: str) -> MethodName:
    """Return the method of a name, or else of a label.

    methods: to look in; name: the requested one. Raises: UnknownName; DataError for a label that
    two methods have.
    """
    candidates = sorted(set(methods))
    # a name is unique, a label may be shared
    hits = [m for m in candidates if m.name == name] or [m for m in candidates if m.label == name]
    if not hits:
        raise UnknownName("baseline", name, sorted({m.name for m in candidates}))
    if len({m.name for m in hits}) > 1:
        subject, got = f"baseline {name!r}", f"the methods {[m.name for m in hits]}"
        raise DataError(subject, got=got, want="one of them", fix="Call it by its name.")
    return hits[0]


def gaps(sheet: SuiteSheet) -> list[str]:
    """Return a sentence for each method that lacks results: on which tasks and seeds, and why.

    sheet: the results of one suite, backbone and protocol.
    """
    lines: list[str] = []
    for method, begun, row in zip(sheet.arms, sheet.begun, sheet.accuracy, strict=True):
        reasons: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for task, scores in zip(sheet.tasks, row, strict=True):
            for seed, expected, score in zip(sheet.seeds, begun, scores, strict=True):
                # a seed that a method was never begun with is no gap
                if expected and np.isnan(score):
                    reason = _why(sheet.results.get((method, task, seed)))
                    reasons[reason][task.name].append(seed)
        # sorted by reason: all seeds that failed alike stand together
        phrases = [
            f"{reason} on {_some([_cells(task, seeds, begun) for task, seeds in places.items()])}"
            for reason, places in sorted(reasons.items())
        ]
        if phrases:
            lines.append(f"{method.label}: {'; '.join(phrases)}.")
    return lines


def _why(result: RunResult | None) -> str:
    """Return why a result is missing: its error, or that it was not run."""
    if result is not None and isinstance(result.outcome, Failed):
        return f"failed ({first_line(result.outcome.error)})"
    return "was not run"


def _cells(task: str, seeds: Sequence[int], begun: np.ndarray) -> str:
    """Return a task in words, with the seeds that lack a result if others have one.

    begun: (seeds,) bool, the seeds that the method was begun with.
    """
    if len(seeds) == begun.sum():
        return task
    return f"{task} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"


def _some(cells: Sequence[str], limit: int = 6) -> str:
    """Return a list in words with the first `limit` entries named."""
    listed = ", ".join(cells[:limit])
    return listed if len(cells) <= limit else f"{listed} and {len(cells) - limit} more"


def epochs_of(sheet: SuiteSheet) -> dict[MethodName, set[int]]:
    """Return the epochs that each method's finished runs were trained for, by method."""
    epochs: dict[MethodName, set[int]] = defaultdict(set)
    for (method, _, _), result in sheet.results.items():
        if isinstance(result.outcome, Done):
            epochs[method].add(result.setup.epochs)
    return epochs
