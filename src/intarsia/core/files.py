"""Files and folders that are written whole or not at all: the one place that replaces them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import TrainingError


@contextmanager
def writing(target: str | Path) -> Generator[Path, None, None]:
    """Gives a path of the same name, to write a file or a folder at; puts it in place at the end.

    What else was written beside it (a graph's weights) is put beside the target, before it. All is
    on the disk before it takes its name; after an error, or a kill, the target is as it was.
    Raises: TrainingError if it cannot be written.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise disk_error(target, error) from error
    aside = folder / "before"
    try:
        yield folder / target.name
        for path in folder.rglob("*"):
            sync(path)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == target.name):
            place = target.with_name(path.name)
            if place.is_dir():  # a folder with files in it cannot be replaced in one step
                os.replace(place, aside)
            os.replace(path, place)
        sync(target.parent)
    except Exception as error:
        # safetensors has an error of its own for a full disk
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise disk_error(target, error) from error
        raise
    finally:
        if aside.exists() and not target.exists():
            os.replace(aside, target)
        shutil.rmtree(folder, ignore_errors=True)


def write_text(target: str | Path, content: str | bytes) -> Path:
    """Write or replace a file; characters that UTF-8 has not become "?".  Returns its path."""
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    with writing(target) as scratch:
        scratch.write_bytes(raw)
    return Path(target)


def write_json(target: str | Path, data: Any, indent: int | None = 2) -> Path:
    """Write or replace a JSON file.  Returns its path."""
    return write_text(target, json.dumps(data, indent=indent) + "\n")


def disk_error(path: str | Path, error: Exception) -> TrainingError:
    """The error for a file that could not be written."""
    return TrainingError(
        f"writing to {path}",
        got=error,
        want="a disk with room that can be written to",
        fix="Free some space, or choose another place; what was there before is intact.",
    )


def sync(path: Path) -> None:
    """Have a file, or a folder's list of files, on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)
