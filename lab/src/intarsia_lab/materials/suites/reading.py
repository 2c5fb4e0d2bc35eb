"""Where a suite's pictures are, and checks that they are complete and as published."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from intarsia.core.errors import DataError
from intarsia.data.folders import check_same_classes
from intarsia.data.images import ImageSet
from intarsia.data.packages import cache_dir

from .lists import SHOWN, check_present
from .task import Parts, Suite, SuiteTask


def home() -> Path:
    """Return the folder with one folder per suite: `$INTARSIA_DATA`, or `suites` in the cache."""
    folder = os.environ.get("INTARSIA_DATA")
    return Path(folder).expanduser() if folder else cache_dir() / "suites"


def root(suite: Suite) -> Path:
    """Return the folder of a suite's pictures, whether it exists or not."""
    return home() / suite.name


def missing(task: SuiteTask, folder: Path) -> list[Path]:
    """Return the files of a task that are missing from a folder.

    task: lists its needs; where there are alternatives, the likeliest one is returned.
    """
    paths: list[Path] = []
    for need in task.needs:
        either = need.split("|")
        if not any(any(folder.glob(name)) for name in either):
            # the alternative with a folder that exists already
            begun = (name for name in either if (folder / name).parent.is_dir())
            paths.append(folder / next(begun, either[0]))
    return paths


def read_task(suite: Suite, task: SuiteTask, folder: Path) -> dict[str, ImageSet]:
    """Read the parts of a task from a suite's folder, and check them; pictures are not decoded.

    Raises: DataError for missing files, for parts, classes or numbers of images other than
      published, and for a class without a test picture; the errors of the task's own reader.
    """
    _check_needs(suite, task, folder)
    spec, fix = f"{suite.name}/{task.name}", _fix(suite, folder)
    parts = dict(task.read(folder))
    _check_counts(task, parts, spec, fix)
    check_same_classes(parts)
    classes = len(next(iter(parts.values())).classes)
    if classes != task.classes:
        raise DataError(f"classes of {spec}", got=classes, want=task.classes, fix=fix)
    _check_every_class(parts, spec, fix)
    for part, images in parts.items():
        check_present(images, spec=f"{spec}, {part}", fix=fix)
    return parts


def read_published(suite: Suite, task: SuiteTask, folder: Path, fraction: float) -> ImageSet | None:
    """Read the training part that a suite publishes for a fraction of the images, or None.

    Raises: DataError as `read_task` does.
    """
    if suite.published is None or task not in suite.tasks or missing(task, folder):
        return None
    images = suite.published(task.name, folder, fraction)
    if images is not None:
        spec = f"{suite.name}/{task.name}, {fraction} of train"
        check_present(images, spec=spec, fix=_fix(suite, folder))
    return images


def _check_needs(suite: Suite, task: SuiteTask, folder: Path) -> None:
    """Raise DataError unless all files of a task are in the suite's folder."""
    absent = missing(task, folder)
    if absent:
        got = "missing:" + "".join(f"\n  {path}" for path in absent) + "\n"
        want = "these files" if len(absent) > 1 else "this file"
        raise DataError(f"{suite.name}/{task.name}", got=got, want=want, fix=_fix(suite, folder))


def _check_counts(task: SuiteTask, parts: Parts, spec: str, fix: str) -> None:
    """Raise DataError unless each part has as many images as published."""
    got = {part: len(images) for part, images in parts.items()}
    if got != dict(task.counts):
        raise DataError(f"images of {spec}", got=_shown(got), want=_shown(task.counts), fix=fix)


def _check_every_class(parts: Parts, spec: str, fix: str) -> None:
    """Raise DataError for a class without a test picture; a training part may lack a class."""
    absent = [name for name, n in parts["test"].counts().items() if not n]
    if absent:
        # a class that no part has is probably a wrong list of classes
        anywhere = {label for images in parts.values() for label, n in images.counts().items() if n}
        named = [name if name in anywhere else f"{name} (in no part)" for name in absent]
        total = len(parts["test"].classes)
        rest = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        got = f"no test picture of {len(absent)}: {', '.join(named[:SHOWN])}{rest}"
        want = f"test pictures of all {total}"
        raise DataError(f"classes of {spec}", got=got, want=want, fix=fix)


def _shown(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{part} {n}" for part, n in counts.items())


def _fix(suite: Suite, folder: Path) -> str:
    return f"{suite.how} The suite's folder is {folder} (set INTARSIA_DATA to move it)."
