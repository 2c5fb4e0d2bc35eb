"""A folder that several processes write: there as a whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from ..core.errors import IntarsiaError, disk_error
from ..core.files import sync, writing
from .exchange import Group, answered

Report = TypeVar("Report")


def write_together(
    target: str | Path,
    part: Callable[[Path], Report],
    finish: Callable[[Path, list[Report]], None],
    group: Group = None,
) -> Path:
    """Write a new folder from several processes; it appears as a whole, or not at all.

    part: function that writes this process's files into the folder that it gets, and returns a
      report; finish: called in the first process with the folder and all reports, by rank; group:
      the processes, None = all.
    All processes need the same file system. The folder takes its name when all of it is on the
    disk; after an error, or the end of any process, the previous content is as before.
    Raises: in all of them the first IntarsiaError that one of them raises; TrainingError where one
      is gone or late, or the disk is full.
    """
    target, stack, main = Path(target), ExitStack(), dist.get_rank(group) == 0

    def begin() -> str:
        scratch = stack.enter_context(writing(target))
        scratch.mkdir()
        return str(scratch)

    def end(reports: list[Report]) -> None:
        finish(scratch, reports)
        stack.close()  # syncs and renames

    with stack:
        # 1. the first process makes the folder, and all learn its name or the error
        begun = _gather_reports(_result_or_error(begin, target) if main else None, target, group)
        scratch = Path(begun[0])
        # 2. every process writes its part
        reports = _gather_reports(
            _result_or_error(lambda: _write_part(part, scratch), target), target, group
        )
        # 3. the first one finishes and renames; the others wait for that
        _gather_reports(
            _result_or_error(lambda: end(reports), target) if main else None, target, group
        )
    return target


def _write_part(part: Callable[[Path], Report], scratch: Path) -> Report:
    """Write this process's files and flush them to the disk; return the report."""
    # files of other processes are synced by those
    before = {path.name for path in scratch.iterdir()}
    report = part(scratch)
    for path in scratch.iterdir():
        if path.name not in before:
            with suppress(FileNotFoundError):  # a temporary file of another process
                sync(path)
    return report


def _result_or_error(job: Callable[[], Any], target: Path) -> Any:
    """Return the result of a function, or its error as a value, so that it can be sent to all."""
    try:
        return job()
    except IntarsiaError as error:
        return error
    except Exception as error:
        # safetensors has an error of its own for a full disk
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            return disk_error(target, error)
        raise


def _gather_reports(report: Any, target: Path, group: Group) -> list[Any]:
    """Return the reports of all processes, by rank, or raise the first error among them."""
    reports: list[Any] = [None] * dist.get_world_size(group)
    with answered(lambda: f"writing {target}", group):
        dist.all_gather_object(reports, report, group=group)
    # the same first error in all, so that none continues alone
    for entry in reports:
        if isinstance(entry, IntarsiaError):
            raise entry
    return reports
