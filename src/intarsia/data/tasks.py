"""Tasks with published parts, "suite/task", that another distribution offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..core.files import JOINED
from ..core.plugins import TASKS, plugins
from .images import ImageSet


@dataclass(frozen=True)
class PublishedTask:
    """A task with published parts, as a suite's entry point returns it for "suite/task".

    read: returns the parts, "train" and "test", usually also "val"; not decoded. Behind
      "@train+val" the validation part is joined to the training part.
    joins: the validation part was joined.
    published: fraction -> the training part that the suite publishes for it, or None.
    groups: class names -> the classes of each task, where several tasks are joined; else None.
    crops: a crop or flip does not change the label.
    """

    read: Callable[[], dict[str, ImageSet]]
    joins: bool
    published: Callable[[float], ImageSet | None]
    groups: Callable[[Sequence[str]], Mapping[str, list[int]]] | None = None
    crops: bool = True


def suites() -> tuple[str, ...]:
    """Return the names of the suites that are installed."""
    return tuple(plugins(TASKS))


def find(spec: str) -> PublishedTask | None:
    """Return the task of "suite/task", or None where `spec` does not begin with a suite's name.

    Raises: UnknownName for a task that the suite does not have; ConfigError for an impossible one.
    """
    head, _, tail = spec.removesuffix(JOINED).partition("/")
    return plugins(TASKS)[head].load()(spec) if tail and head in plugins(TASKS) else None
