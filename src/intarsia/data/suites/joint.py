"""Several tasks as one: their classes side by side, a head for each or one head for all."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path

import numpy as np

from ...core.errors import ConfigError
from ..decode import Picture
from ..images import ImageSet
from .task import Parts, SuiteTask

JOINT = "joint"  # the group of joint tasks, and the task that joins all of a suite


def joint(tasks: Mapping[str, Parts]) -> Parts:
    """Join tasks, task -> parts, in one label space of classes called "task/class".

    A validation part that not every task has is added to that task's training part. See `groups`
    for which class belongs to which task.
    Raises: ConfigError for less than two tasks, or one without train or test.
    """
    _check(tasks, {name: tuple(parts) for name, parts in tasks.items()})
    first = {name: next(iter(parts.values())).classes for name, parts in tasks.items()}
    classes = tuple(f"{name}/{label}" for name, labels in first.items() for label in labels)
    offsets = dict(zip(tasks, accumulate(map(len, first.values()), initial=0), strict=False))
    name = "+".join(tasks)
    found: dict[str, ImageSet] = {}
    for part, sources in _sources({name: tuple(parts) for name, parts in tasks.items()}).items():
        sets = [(offsets[task], tasks[task][p]) for task, p in sources]
        labels = np.concatenate([images.labels + offset for offset, images in sets])
        pictures = _Chained([images.images for _, images in sets])
        licences = sorted({images.licence for _, images in sets})
        found[part] = ImageSet(name, pictures, labels, classes, licence="; ".join(licences),
                               source="joint")  # fmt: skip
    return found


def groups(classes: Sequence[str]) -> dict[str, list[int]]:
    """Task -> its classes, of class names that `joint` gave."""
    found: dict[str, list[int]] = {}
    for label, name in enumerate(classes):
        found.setdefault(name.partition("/")[0], []).append(label)
    return found


def joint_task(
    tasks: Sequence[SuiteTask], name: str, read: Callable[[SuiteTask, Path], Parts]
) -> SuiteTask:
    """The task that joins `tasks`; read: how each of them is read.

    Raises: ConfigError as `joint` does, and for a task that is there twice.
    """
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ConfigError("joint tasks", got=" + ".join(names), want="each once",
                          fix="Leave out the second.")  # fmt: skip
    counts = {task.name: task.counts for task in tasks}
    _check(counts, {n: tuple(c) for n, c in counts.items()})
    sources = _sources({n: tuple(c) for n, c in counts.items()})
    return SuiteTask(
        name=name,
        group=JOINT,
        classes=sum(task.classes for task in tasks),
        counts={p: sum(counts[t][q] for t, q in found) for p, found in sources.items()},
        read=lambda root: joint({task.name: read(task, root) for task in tasks}),
        needs=tuple(chain.from_iterable(task.needs for task in tasks)),
        synthetic=all(task.synthetic for task in tasks),
        about=f"{len(tasks)} tasks in one label space",
    )


def _check(tasks: Mapping[str, object], parts: Mapping[str, Sequence[str]]) -> None:
    lacking = [name for name, found in parts.items() if not {"train", "test"} <= set(found)]
    if len(tasks) < 2 or lacking:
        got = f"{' and '.join(lacking)} without train or test" if lacking else f"{len(tasks)} task"
        raise ConfigError("joint tasks", got=got, want="two or more, each with train and test",
                          fix="Name others, as in mini/a+b.")  # fmt: skip


def _sources(parts: Mapping[str, Sequence[str]]) -> dict[str, list[tuple[str, str]]]:
    """Joint part -> (task, part) it is made of."""
    every = all("val" in found for found in parts.values())
    train = [
        (task, part)
        for task, found in parts.items()
        for part in ("train", "val")
        if part in found and not (every and part == "val")
    ]
    rest = ("val", "test") if every else ("test",)
    return {"train": train} | {part: [(task, part) for task in parts] for part in rest}


def chained(first: ImageSet, second: ImageSet) -> ImageSet:
    """Two parts of one task, one behind the other."""
    images = _Chained([first.images, second.images])
    return replace(
        first, images=images, labels=np.concatenate([first.labels, second.labels]), digests=()
    )


class _Chained(Sequence[Picture]):
    """Sequences of pictures one after the other, none looked at before it is asked for."""

    def __init__(self, parts: Sequence[Sequence[Picture] | np.ndarray]) -> None:
        self.parts = parts
        self.starts = list(accumulate(map(len, parts), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Picture:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self.starts, index) - 1
        return self.parts[part][index - self.starts[part]]
