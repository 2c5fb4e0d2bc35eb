"""Several tasks joined in one label space, for one head over all classes or a head per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path

import numpy as np

from intarsia.core.errors import ConfigError
from intarsia.data.images import ImageSet
from intarsia.data.joined import in_sequence

from .task import Parts, SuiteTask

JOINT = "joint"  # the group of joint tasks, and the name of the task that joins a whole suite


def joint(tasks: Mapping[str, Parts]) -> Parts:
    """Join tasks in one label space with classes that are called "task/class".

    tasks: task -> parts, each a data set. If some tasks have no validation part, the others'
      validation parts are added to their training parts.
    Raises: ConfigError for fewer than two tasks, or a task without train or test.
    """
    _check({name: tuple(parts) for name, parts in tasks.items()})
    first = {name: next(iter(parts.values())).classes for name, parts in tasks.items()}
    classes = tuple(f"{name}/{label}" for name, labels in first.items() for label in labels)
    # the classes of a task follow the classes of the tasks before it
    offsets = dict(zip(tasks, accumulate(map(len, first.values()), initial=0), strict=False))
    name = "+".join(tasks)
    joined: dict[str, ImageSet] = {}
    for part, sources in _sources({name: tuple(parts) for name, parts in tasks.items()}).items():
        sets = [(offsets[task], tasks[task][p]) for task, p in sources]
        labels = np.concatenate([images.labels + offset for offset, images in sets])
        pictures = in_sequence([images.images for _, images in sets])
        licence = "; ".join(sorted({images.licence for _, images in sets}))
        joined[part] = ImageSet(name, pictures, labels, classes, licence=licence, source="joint")
    return joined


def groups(classes: Sequence[str]) -> dict[str, list[int]]:
    """Return task -> indices of its classes, from the class names that `joint` made."""
    indices: dict[str, list[int]] = {}
    for label, name in enumerate(classes):
        indices.setdefault(name.partition("/")[0], []).append(label)
    return indices


def joint_task(
    tasks: Sequence[SuiteTask], name: str, read: Callable[[SuiteTask, Path], Parts]
) -> SuiteTask:
    """Return the task that joins several tasks in one label space.

    tasks: of one suite or several; name: of the new task; read: reads the parts of one of them.
    Raises: ConfigError as `joint` does, and for a task that is given twice.
    """
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        got, fix = " + ".join(names), "Leave out the second."
        raise ConfigError("joint tasks", got=got, want="each once", fix=fix)
    counts = {task.name: task.counts for task in tasks}
    parts = {name: tuple(pairs) for name, pairs in counts.items()}
    _check(parts)
    sources = _sources(parts)
    return SuiteTask(
        name=name,
        group=JOINT,
        classes=sum(task.classes for task in tasks),
        counts={p: sum(counts[t][q] for t, q in pairs) for p, pairs in sources.items()},
        read=lambda root: joint({task.name: read(task, root) for task in tasks}),
        needs=tuple(chain.from_iterable(task.needs for task in tasks)),
        synthetic=all(task.synthetic for task in tasks),
        about=f"{len(tasks)} tasks in one label space",
    )


def _check(parts: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError unless there are two tasks or more, each with training and test parts."""
    lacking = [name for name, names in parts.items() if not {"train", "test"} <= set(names)]
    if len(parts) < 2 or lacking:
        got = f"{' and '.join(lacking)} without train or test" if lacking else f"{len(parts)} task"
        want, fix = "two or more, each with train and test", "Name others, as in mini/a+b."
        raise ConfigError("joint tasks", got=got, want=want, fix=fix)


def _sources(parts: Mapping[str, Sequence[str]]) -> dict[str, list[tuple[str, str]]]:
    """Return, for each joint part, the (task, part) pairs that it is made of."""
    all_validate = all("val" in names for names in parts.values())
    # validation parts are for training unless every task has one
    train = [
        (task, part)
        for task, names in parts.items()
        for part in ("train", "val")
        if part in names and not (all_validate and part == "val")
    ]
    rest = ("val", "test") if all_validate else ("test",)
    return {"train": train} | {part: [(task, part) for task in parts] for part in rest}
