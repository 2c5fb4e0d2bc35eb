"""Benchmark suites by name: tasks with published parts, checked against the published numbers.

parts = read("vtab-1k/cifar100")            # {"train": ..., "val": ..., "test": ...}
parts = read("fgvc/cub+dogs")               # two tasks in one label space; fgvc/joint is all five
parts = read("vtab-1k/cifar100@train+val")  # train also on the validation part
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from intarsia.core.errors import UnknownName
from intarsia.core.files import JOINED as JOINED
from intarsia.data.images import ImageSet
from intarsia.data.joined import chained
from intarsia.data.tasks import PublishedTask

from . import reading
from .joint import JOINT as JOINT
from .joint import groups as groups
from .joint import joint as joint
from .joint import joint_task
from .reading import home as home
from .reading import root as root
from .task import Parts as Parts
from .task import Suite as Suite
from .task import SuiteTask as SuiteTask

# suite -> its module, imported on use, so that a missing dependency breaks only one suite
MODULES = {"vtab-1k": "vtab", "fgvc": "fgvc", "gicd": "gicd", "mini": "mini", "fresh": "fresh"}


def suites() -> tuple[Suite, ...]:
    """Return all suites except those with an optional dependency that is not installed."""
    return tuple(loaded for loaded in map(_loaded, MODULES) if isinstance(loaded, Suite))


def suite(name: str) -> Suite:
    """Return the suite of that name.

    Raises: UnknownName; ImportError when a package that it needs is not installed.
    """
    if name not in MODULES:
        raise UnknownName("suite", name, MODULES)
    return import_module(f".{MODULES[name]}", __name__).SUITE


def find(spec: str) -> tuple[Suite, SuiteTask] | None:
    """Return the task of "suite/task"; None when `spec` does not begin with the name of a suite.

    "suite/a+b" joins tasks, "suite/joint" all tasks of a suite. "@train+val" is ignored here.
    Raises: UnknownName for a task that the suite does not have; ConfigError for an impossible join.
    """
    head, _, tail = spec.removesuffix(JOINED).partition("/")
    if head not in MODULES or not tail:
        return None
    known_suite = suite(head)
    if "+" not in tail and tail != JOINT:
        return known_suite, known_suite.task(tail)
    tasks = members(known_suite, tail)
    return known_suite, joint_task(
        tasks, tail, lambda t, folder: reading.read_task(known_suite, t, folder)
    )


def members(owner: Suite, name: str) -> tuple[SuiteTask, ...]:
    """Return the tasks that "a+b" or "joint" consists of, or the single task of that name."""
    return owner.tasks if name == JOINT else tuple(map(owner.task, name.split("+")))


def published_task(spec: str) -> PublishedTask:
    """Return the task of "suite/task" as `intarsia.data` wants it.  Raises: as `find` does."""
    owner, task = _found(spec)
    several = members(owner, task.name)
    return PublishedTask(
        read=lambda: read(spec),
        joins=joins(spec),
        published=lambda fraction: published(spec, fraction),
        groups=groups if task.group == JOINT else None,
        crops=all(task.group != "structured" for task in several),
    )


def read(spec: str) -> dict[str, ImageSet]:
    """Return the published parts of "suite/task", not decoded; numbers of images are checked.

    "@train+val" joins training and validation parts, as VTAB-1k does for the final run after a
    search on the validation part.
    Raises: UnknownName; DataError for files that are missing, damaged or not as published.
    """
    owner, task = _found(spec)
    parts = reading.read_task(owner, task, root(owner))
    if joins(spec):
        parts["train"] = chained(parts["train"], parts.pop("val"))
    return parts


def joins(spec: str) -> bool:
    """Return True if "@train+val" adds a validation part to the training part of `spec`."""
    return spec.endswith(JOINED) and "val" in _found(spec)[1].counts


def published(spec: str, fraction: float) -> ImageSet | None:
    """Return the published training part of "suite/task" with that fraction, or None."""
    owner, task = _found(spec)
    return reading.read_published(owner, task, root(owner), fraction)


def describe(root: Path | None = None) -> list[dict[str, Any]]:
    """Return suites, their tasks, and which of them are on disk, ready for JSON.

    root: the folder with one folder per suite; None = `home()`. Only the files that a task needs
    are looked for. `read` also checks every picture.
    """
    return [_suite_record(name, (root or home()) / name) for name in MODULES]


def _found(spec: str) -> tuple[Suite, SuiteTask]:
    """Return a suite and a task by "suite/task".  Raises: UnknownName for another suite."""
    match = find(spec)
    if match is None:
        raise UnknownName("suite", spec.partition("/")[0], MODULES)
    return match


def _loaded(name: str) -> Suite | ImportError:
    """Return a suite, or the error if a library that it needs is missing."""
    try:
        return suite(name)
    except ImportError as error:
        return error


def _suite_record(name: str, folder: Path) -> dict[str, Any]:
    """Describe a suite and its tasks as JSON; "error" where a library is missing."""
    loaded = _loaded(name)
    if isinstance(loaded, ImportError):
        return {"suite": name, "root": str(folder), "error": str(loaded), "tasks": []}
    tasks = [_task_record(loaded, task, folder) for task in loaded.tasks]
    return {
        "suite": name,
        "about": loaded.about,
        "how": loaded.how,
        "groups": list(loaded.groups),
        "root": str(folder),
        "tasks": tasks,
    }


def _task_record(owner: Suite, task: SuiteTask, folder: Path) -> dict[str, Any]:
    """Describe a task of a suite as JSON, and which of its files are missing."""
    absent = [str(path) for path in reading.missing(task, folder)]
    obtained = owner.obtained(task.name)
    if task.synthetic and obtained is None and not task.needs:
        pictures = "rendered here"
    elif obtained is False:
        pictures = "obtained when first used"
    else:
        pictures = "not on disk" if absent else "ready"
    return {
        "task": task.name,
        "spec": f"{owner.name}/{task.name}",
        "group": task.group,
        "classes": task.classes,
        "counts": dict(task.counts),
        "synthetic": task.synthetic,
        "about": task.about,
        "pictures": pictures,
        "on_disk": obtained is not False and not absent,
        "missing": absent,
    }
