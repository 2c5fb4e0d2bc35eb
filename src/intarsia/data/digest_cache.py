"""Cached digests of decoded image files, so that a folder is checked once and not in every run.

A file counts as unchanged while its path, size and times are the same: nobody can write to it, or
put another in its place, and keep the time at which the system saw it change.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import TrainingError
from ..core.files import read_json, write_json
from .packages import cache_dir

Stamp = tuple[int, int, int]  # bytes; nanoseconds of the last change, as told and as seen


def stamp(path: Path) -> Stamp | None:
    """Return size and times of last change of a file; None when it cannot be read."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # a name that no file can have
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class DigestCache:
    """The digests of the files under one folder, stored in `<cache>/digests/`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open the stored digests of pictures; their common folder decides which file is used."""
        self.root = Path(os.path.commonpath([path.absolute() for path in paths]))
        key = hashlib.sha256(str(self.root).encode()).hexdigest()[:24]
        self.file = cache_dir() / "digests" / f"{key}.json"
        self.known: dict[str, list[object]] = {}
        with contextlib.suppress(OSError, ValueError):  # missing or damaged: decode again
            digests = read_json(self.file)
            self.known = digests if isinstance(digests, dict) else {}

    def _name(self, path: Path) -> str:
        return os.path.relpath(path.absolute(), self.root)

    def get(self, path: Path) -> str | None:
        """Return the stored digest of a file that has not changed since `save`; None otherwise."""
        match self.known.get(self._name(path)):
            case [*found, str(digest)] if tuple(found) == stamp(path):
                return digest
        return None

    def save(self, digests: dict[Path, str]) -> None:
        """Store digests of decoded pictures, with size and times of their files."""
        for path, digest in digests.items():
            if file_stamp := stamp(path):
                self.known[self._name(path)] = [*file_stamp, digest]
        with contextlib.suppress(TrainingError):  # no cache folder: the next run decodes again
            write_json(self.file, self.known, indent=None)
