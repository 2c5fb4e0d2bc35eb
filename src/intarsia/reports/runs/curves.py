"""Learning curves from metrics.jsonl: one point per split and epoch, and means over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ...core.errors import CheckpointError
from ...core.files import parse_json
from ...core.reading import read_text

_NOT_VALUES = frozenset({"step", "epoch", "split", "seconds"})


@dataclass(frozen=True)
class Point:
    """Named values of a split at an epoch; of training, the means over the epoch's steps."""

    split: str
    epoch: float
    values: Mapping[str, float]


def read_curve(path: Path) -> tuple[Point, ...]:
    """Read the logged values of a run: one point for each part of the data and each epoch.

    path: the run's metrics.jsonl; without that file there are no points. An unfinished last line is
      left out: a run may have been killed while it wrote it.
    Raises: CheckpointError for any other line that is not a JSON object with split and epoch.
    """
    if not path.is_file():
        return ()
    # all lines of a split and an epoch are one point
    lines: dict[tuple[str, float], list[Mapping[str, Any]]] = defaultdict(list)
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    # a finished file ends with a line break, so that the last part is empty
    *complete, _unfinished = text.split("\n")
    for number, line in enumerate(complete, start=1):
        try:
            entry = parse_json(line)
            lines[str(entry["split"]), float(entry["epoch"])].append(entry)
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, f"line {number}: {type(error).__name__}: {error}") from error
    return tuple(Point(split, epoch, _values(entries)) for (split, epoch), entries in lines.items())


def _values(entries: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of every logged value over some lines of metrics.jsonl, by name."""
    by_name: dict[str, list[float]] = defaultdict(list)
    for entry in entries:
        for name, value in entry.items():
            # everything else that is a number is a metric
            if name not in _NOT_VALUES and isinstance(value, int | float):
                by_name[name].append(float(value))
    return {name: fmean(values) for name, values in by_name.items()}


def metrics_of(curves: Iterable[Iterable[Point]]) -> list[str]:
    """Return the names of all logged values: accuracy and loss first, the learning rate last."""
    first = {"accuracy": 0, "loss": 1, "lr": 9}
    # the metrics that any run has, whatever they are called
    names = {name for curve in curves for point in curve for name in point.values}
    return sorted(names, key=lambda name: (first.get(name, 5), name))


def line_of(curve: Iterable[Point], split: str, metric: str) -> dict[float, float]:
    """Return epoch -> value of one metric on one part of the data, in the order of the epochs."""
    values = {p.epoch: p.values[metric] for p in curve if p.split == split and metric in p.values}
    return dict(sorted(values.items()))


def mean_line(lines: Iterable[Mapping[float, float]]) -> dict[float, float]:
    """Return epoch -> mean over several lines, at the epochs that all of them have.

    lines: for each run a mapping epoch -> value; empty ones are ignored.
    """
    lines = [line for line in lines if line]
    if not lines:
        return {}
    # where a run ended early, a mean over the others would jump
    epochs = sorted(set.intersection(*(set(line) for line in lines)))
    return {epoch: fmean(line[epoch] for line in lines) for epoch in epochs}


def _damaged(path: Path, got: str) -> CheckpointError:
    return CheckpointError(
        f"curve in {path}",
        got=got,
        want="one JSON object with split and epoch a line",
        fix="Restore it from a copy, or delete the file: the report then has no curves.",
    )
