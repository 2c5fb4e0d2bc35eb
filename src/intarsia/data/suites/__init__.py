"""Benchmark suites by name: tasks with published parts, read and checked against a table.

parts = read("vtab-1k/cifar100")            # {"train": ..., "val": ..., "test": ...}
parts = read("fgvc/cub+dogs")               # two tasks in one label space; fgvc/joint is all five
parts = read("vtab-1k/cifar100@train+val")  # the validation part is trained on too
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ...core.errors import UnknownName
from ..images import ImageSet
from . import reading
from .joint import JOINT as JOINT
from .joint import chained, joint_task
from .joint import groups as groups
from .joint import joint as joint
from .reading import home as home
from .reading import root as root
from .task import Parts as Parts
from .task import Suite as Suite
from .task import SuiteTask as SuiteTask

# suite -> its module here, imported when asked for: what one needs, the others do without
MODULES = {"vtab-1k": "vtab", "fgvc": "fgvc", "gicd": "gicd", "mini": "mini"}


JOINED = "@train+val"


def suites() -> tuple[Suite, ...]:
    """All suites, but for those whose optional dependency is not installed."""
    return tuple(found for found in map(_loaded, MODULES) if isinstance(found, Suite))


def suite(name: str) -> Suite:
    """The suite of that name.

    Raises: UnknownName; ImportError when something it needs is not installed.
    """
    if name not in MODULES:
        raise UnknownName("suite", name, MODULES)
    return import_module(f".{MODULES[name]}", __name__).SUITE


def find(spec: str) -> tuple[Suite, SuiteTask] | None:
    """The task of "suite/task"; None when what stands before "/" is no suite.

    "suite/a+b" joins tasks, "suite/joint" all of a suite; "@train+val" behind it is left alone.
    Raises: UnknownName for a task the suite does not have; ConfigError for a join that cannot be.
    """
    head, _, tail = spec.removesuffix(JOINED).partition("/")
    if head not in MODULES or not tail:
        return None
    found = suite(head)
    if "+" not in tail and tail != JOINT:
        return found, found.task(tail)
    tasks = members(found, tail)
    return found, joint_task(tasks, tail, lambda t, folder: reading.read_task(found, t, folder))


def members(found: Suite, name: str) -> tuple[SuiteTask, ...]:
    """The tasks of a suite that "a+b" or "joint" is made of; of a single task, that one."""
    return found.tasks if name == JOINT else tuple(map(found.task, name.split("+")))


def read(spec: str) -> dict[str, ImageSet]:
    """The published parts of "suite/task", nothing decoded, checked against the suite's table.

    With "@train+val" behind it, training and validation parts are one: for the run that counts,
    after a search that looked at the validation part, as VTAB-1k has it.
    Raises: UnknownName; DataError for what is missing, damaged or not as published.
    """
    found, task = _found(spec)
    parts = reading.read_task(found, task, root(found))
    if joins(spec):
        parts["train"] = chained(parts["train"], parts.pop("val"))
    return parts


def joins(spec: str) -> bool:
    """Whether the training part of "suite/task@train+val" is really two."""
    return spec.endswith(JOINED) and "val" in _found(spec)[1].counts


def published(spec: str, fraction: float) -> ImageSet | None:
    """The training part of "suite/task" that its publisher cut to `fraction`; None without one."""
    found, task = _found(spec)
    return reading.read_published(found, task, root(found), fraction)


def describe(root: Path | None = None) -> list[dict[str, Any]]:
    """What there is, for JSON: suites, their tasks, and which of them are on disk.

    root: the folder with a folder for each suite; None = `home()`. Files a task needs are looked
    for, its pictures are not: `read` does that.
    """
    return [_suite_record(name, (root or home()) / name) for name in MODULES]


def _found(spec: str) -> tuple[Suite, SuiteTask]:
    found = find(spec)
    if found is None:
        raise UnknownName("suite", spec.partition("/")[0], MODULES)
    return found


def _loaded(name: str) -> Suite | ImportError:
    try:
        return suite(name)
    except ImportError as error:
        return error


def _suite_record(name: str, folder: Path) -> dict[str, Any]:
    found = _loaded(name)
    if isinstance(found, ImportError):
        return {"suite": name, "root": str(folder), "error": str(found), "tasks": []}
    tasks = [_task_record(found, task, folder) for task in found.tasks]
    return {
        "suite": name,
        "about": found.about,
        "how": found.how,
        "groups": list(found.groups),
        "root": str(folder),
        "tasks": tasks,
    }


def _task_record(found: Suite, task: SuiteTask, folder: Path) -> dict[str, Any]:
    absent = [str(path) for path in reading.missing(task, folder)]
    obtained = found.obtained(task.name)
    if task.synthetic and obtained is None and not task.needs:
        pictures = "rendered here"
    elif obtained is False:
        pictures = "obtained when first used"
    else:
        pictures = "not on disk" if absent else "ready"
    return {
        "task": task.name,
        "spec": f"{found.name}/{task.name}",
        "group": task.group,
        "classes": task.classes,
        "counts": dict(task.counts),
        "synthetic": task.synthetic,
        "about": task.about,
        "pictures": pictures,
        "on_disk": obtained is not False and not absent,
        "missing": absent,
    }
