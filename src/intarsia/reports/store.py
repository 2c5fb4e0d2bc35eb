"""What was computed, kept by the hash of its inputs: one JSON object a line, appended whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..core.errors import CheckpointError
from ..core.files import disk_error, parse_json
from ..core.reading import read_bytes

KEY = "key"


def key_of(inputs: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of everything a result depends on (JSON-ready, in any order)."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """Rows of a JSON-lines file by their key; a later row of a key stands for the earlier ones.

    A line that was cut short by a kill is skipped, and its result computed again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = {row[KEY]: row for row in self._read()}

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        try:
            raw = read_bytes(self.path)
        except OSError as error:
            fix = "Name another file, or move it away."
            raise CheckpointError(str(self.path), got=error, want="a file", fix=fix) from error
        for line in raw.splitlines():
            try:
                row = parse_json(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get(KEY), str):
                yield row

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.rows[key]

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Append a row: in the file when this returns.  Raises: TrainingError on a full disk."""
        full = {KEY: key, **row}
        append_line(self.path, full)
        self.rows[key] = full


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add a JSON line: wholly there when this returns, by one writer at a time.

    What a kill left of an unfinished last line is removed first.
    Raises: TrainingError when the disk is full or the file cannot be written.
    """
    line = json.dumps(row, sort_keys=True, allow_nan=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"), path.open("a+b") as file:
            file.truncate(_whole(file.tell(), file))
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise disk_error(path, error) from error


def _whole(end: int, file: Any, block: int = 4096) -> int:
    """Bytes up to and with the last line's end."""
    while end:
        start = max(0, end - block)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
