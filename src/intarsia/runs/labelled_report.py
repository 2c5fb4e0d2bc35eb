"""Runs on labelled rows next to each other: one table, one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ..core.errors import ConfigError, DataError, UnknownName
from ..core.labelled import FILE
from ..models.classify.words import has_adapter
from ..reports import numbers
from ..reports.report import Report, Section
from ..reports.sheet import Spread
from ..reports.statistics import PairedInterval, paired_interval
from ..reports.table import Column, Entry, Table
from .labelled import RowAnswers, answers_of, read_record

WITHIN = "these rows do not decide between the two"


@dataclass(frozen=True, eq=False)
class ComparedMethod:
    """A method's runs: seed and digest of the test rows -> record and answers."""

    method: str
    runs: Mapping[tuple[int, str], tuple[Mapping[str, Any], RowAnswers]]

    def mean(self, score: str, part: str = "test") -> Spread:
        """Return the mean and the deviation of a score over the runs."""
        values = [record["results"][part][score] for record, _ in self.runs.values()]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return Spread(fmean(values), deviation, len(values))

    @property
    def seconds(self) -> float:
        """The mean seconds of fitting."""
        return fmean(record["results"]["seconds"] for record, _ in self.runs.values())

    def ahead(self, other: ComparedMethod) -> PairedInterval | None:
        """Return by how much the method is ahead on the rows that both answered at equal seeds.

        A row that is in the test part of several seeds counts once, with its mean.
        """
        keys = sorted(self.runs.keys() & other.runs.keys())
        if not keys:
            return None
        rows = np.concatenate([self.runs[key][1].rows for key in keys])
        right = [np.concatenate([arm.runs[key][1].right for key in keys]) for arm in (self, other)]
        if len(keys) == 1:
            return paired_interval([np.arange(len(rows))], right[:1], right[1:])
        ids, place = np.unique(rows, return_inverse=True)
        means = [np.bincount(place, values) / np.bincount(place) for values in right]
        return paired_interval([np.arange(len(ids))], means[:1], means[1:])


def runs_below(folders: Sequence[Path]) -> list[Path]:
    """Return the folders of runs on labelled rows in or below some folders."""
    return sorted({file.parent for folder in folders for file in folder.rglob(FILE)})


def arms_of(folders: Sequence[Path]) -> list[ComparedMethod]:
    """Read runs, and group them by the method that was asked for, in the order of their names.

    Raises: DataError where there is none.
    """
    groups: dict[str, dict[tuple[int, str], tuple[Mapping[str, Any], RowAnswers]]] = {}
    for folder in runs_below(folders):
        record = read_record(folder)
        settings, digest = record["settings"], record["data"]["test"]["digest"]
        row = record, answers_of(folder)
        groups.setdefault(record["asked"], {})[settings["seed"], digest] = row
    if not groups:
        fix = "Fit some: intarsia fit texts.csv"
        got, want = "no finished run", "runs on labelled rows"
        raise DataError(f"folders {', '.join(map(str, folders))}", got=got, want=want, fix=fix)
    return [ComparedMethod(method, runs) for method, runs in groups.items()]


def comparison_report(arms: Sequence[ComparedMethod], baseline: str | None = None) -> Report:
    """Return the report of some methods: sentences and a table, the best on held-out rows first.

    baseline: the method that the others are compared with, None = the first.
    Raises: UnknownName; ConfigError for parts of several data.
    """
    methods = [arm.method for arm in arms]
    if baseline is not None and baseline not in methods:
        raise UnknownName("--baseline", baseline, methods)
    base = arms[0 if baseline is None else methods.index(baseline)]
    data = {record["settings"]["data"] for arm in arms for record, _ in arm.runs.values()}
    if len(data) > 1:
        fix = "Report the runs of one data set at a time."
        raise ConfigError("runs", got=", ".join(sorted(data)), want="one data set", fix=fix)
    arms = sorted(arms, key=lambda arm: arm.mean("loss", "held_out").mean)
    best = arms[0]
    accuracy = numbers.accuracy(best.mean("accuracy"))
    sentences = [f"Best on held-out training rows: {best.method}; {accuracy} of the test rows."]
    if best is not base:
        sentences.append(lead(best.ahead(base), base.method))
    # the arms are in order: the first of each kind is the best
    adapted = [arm for arm in arms if has_adapter(arm.method)]
    frozen = [arm for arm in arms if not has_adapter(arm.method)]
    if adapted and frozen and (adapted[0], frozen[0]) != (best, base):
        gap = adapted[0].ahead(frozen[0])
        sentences.append(adapting(gap, adapted[0].method, frozen[0].method))
    record = next(iter(best.runs.values()))[0]
    caption = (
        f"{Path(next(iter(data))).name}: {record['data']['train']['n']:,} rows to train on, "
        f"{record['data']['test']['n']:,} to test; each method's penalty, temperature and layer "
        f"are chosen on five folds of the training rows."
    )
    entries = tuple(_line(arm, base) for arm in arms)
    table = Table(caption, COLUMNS, entries, best=0, baseline=arms.index(base))
    section = Section("Methods", (table,))
    return Report(f"Classifiers of {Path(next(iter(data))).name}", tuple(sentences), (section,))


COLUMNS = (
    Column("Method", "As --method takes it", numeric=False),
    Column("Test accuracy", "Share of right answers, ± over seeds"),
    Column("Balanced", "Mean over the classes"),
    Column("Loss", "Cross-entropy of the test rows"),
    Column("Held-out", "Share of right answers on the folds of the training rows"),
    Column("Ahead", "Points more than the baseline, with the 95 % interval, paired"),
    Column("Time", "Of fitting"),
)


def _line(arm: ComparedMethod, base: ComparedMethod) -> tuple[Entry, ...]:
    """Return a method's row of the table, see COLUMNS; base: the baseline."""
    gap = None if arm is base else arm.ahead(base)
    ahead = "" if gap is None else f"{numbers.signed(100 * gap.mean)} "
    ahead += "" if gap is None else numbers.interval(gap.low, gap.high)
    cells = [numbers.accuracy(arm.mean(name)) for name in ("accuracy", "balanced_accuracy")]
    cells += [f"{arm.mean('loss').mean:.3f}", numbers.accuracy(arm.mean("accuracy", "held_out"))]
    return tuple(map(Entry, (arm.method, *cells, ahead, numbers.seconds(arm.seconds))))


def lead(gap: PairedInterval | None, other: str) -> str:
    """Return the sentence on a paired difference.  gap: None for equal answers to every row."""
    if gap is None:
        return f"Against {other}: 0.0 points; the answers are the same."
    ends = " to ".join(numbers.signed(100 * end) for end in (gap.low, gap.high))
    verdict = "it is ahead" if gap.low > 0 else "it is behind" if gap.high < 0 else WITHIN
    mean = numbers.signed(100 * gap.mean)
    return f"Against {other}: {mean} points (95 % interval {ends}); {verdict}."


def adapting(gap: PairedInterval | None, adapter: str, other: str) -> str:
    """Return the sentence on an adapter next to the best frozen features, of a paired difference.

    gap: as for `lead`.
    """
    sentence = lead(gap, other).replace(WITHIN, f"{WITHIN}, so that adapting may not pay")
    behind = gap is None or gap.high < 0
    return f"{'Adapting does not pay here. ' if behind else ''}{adapter}: {_small(sentence)}"


def _small(sentence: str) -> str:
    """Return a sentence as it stands behind a colon."""
    return sentence[0].lower() + sentence[1:]
