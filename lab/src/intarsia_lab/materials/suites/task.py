"""Suites and their tasks: names for published pictures and splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from intarsia.core.errors import UnknownName
from intarsia.data.images import ImageSet

Parts = Mapping[str, ImageSet]  # "train" and "test", usually also "val"


@dataclass(frozen=True)
class SuiteTask:
    """A classification task with fixed parts.

    counts: published images per part; `read` must return exactly these.
    read: the suite's folder -> parts; tasks from packages and rendered tasks ignore the folder.
    needs: required paths below the suite's folder. "a|b" means either of them, and an error names
    the first; "*" is any text.
    group: the tasks of a group have a mean in the tables, as "natural".
    synthetic: the pictures are rendered or simulated, not photographed.
    """

    name: str
    group: str
    classes: int
    counts: Mapping[str, int]
    read: Callable[[Path], Parts]
    needs: tuple[str, ...] = ()
    synthetic: bool = False
    about: str = ""


# (task, the suite's folder, fraction) -> the published training part of that fraction, or None
Published = Callable[[str, Path, float], ImageSet | None]


@dataclass(frozen=True)
class Suite:
    """Tasks that are reported together; how: instructions for obtaining the pictures.

    published: finds a published training part with a fraction of the images.
    obtained: task -> whether its package is downloaded; None for a task without a package.
    """

    name: str
    about: str
    tasks: tuple[SuiteTask, ...]
    how: str = ""
    groups: tuple[str, ...] = field(default=())
    published: Published | None = None
    obtained: Callable[[str], bool | None] = lambda _: None

    def task(self, name: str) -> SuiteTask:
        """Return the task of this name.  Raises: UnknownName."""
        for known_task in self.tasks:
            if known_task.name == name:
                return known_task
        raise UnknownName(f"task of {self.name}", name, [t.name for t in self.tasks])
