"""What a benchmark is made of: suites of tasks, each a name for published pictures and splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import UnknownName
from ..images import ImageSet

Parts = Mapping[str, ImageSet]  # "train" and "test", mostly "val" too


@dataclass(frozen=True)
class SuiteTask:
    """A classification task with fixed parts.

    counts: images by part as published; `read` must return exactly these.
    read: the suite's folder -> parts; a task out of a package, or a rendered one, ignores it.
    needs: paths below the suite's folder without which it cannot be read; none = nothing. "a|b" is
    either of them, the first being the place to name when both are missing; "*" is any text.
    group: of a table's mean, as "natural"; synthetic: rendered or simulated, not photographed.
    """

    name: str
    group: str
    classes: int
    counts: Mapping[str, int]
    read: Callable[[Path], Parts]
    needs: tuple[str, ...] = ()
    synthetic: bool = False
    about: str = ""


# (task, the suite's folder, share) -> the published training part of that share, if it is there
Published = Callable[[str, Path, float], ImageSet | None]


@dataclass(frozen=True)
class Suite:
    """Tasks that are reported together; `how` says where its pictures come from.

    published: looks for a training part that the publisher cut down to a share of the whole.
    obtained: task -> whether its package's pictures were; None for a task out of no package.
    """

    name: str
    about: str
    tasks: tuple[SuiteTask, ...]
    how: str = ""
    groups: tuple[str, ...] = field(default=())
    published: Published | None = None
    obtained: Callable[[str], bool | None] = lambda _: None

    def task(self, name: str) -> SuiteTask:
        """The task of that name.  Raises: UnknownName."""
        for found in self.tasks:
            if found.name == name:
                return found
        raise UnknownName(f"task of {self.name}", name, [t.name for t in self.tasks])
