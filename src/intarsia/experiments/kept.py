"""What was computed, kept by the hash of its inputs: one JSON object a line, appended whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..train.checkpoint import disk_error

KEY = "key"


def key_of(inputs: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of everything a result depends on (JSON-ready, in any order)."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


class Kept:
    """Rows of a JSON-lines file by their key; a later row of a key stands for the earlier ones.

    A line that was cut short by a kill is skipped, and its result computed again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = {row[KEY]: row for row in self._read()}

    def _read(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        for line in self.path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and KEY in row:
                yield row

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.rows[key]

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Append a row: in the file when this returns.  Raises: TrainingError on a full disk."""
        full = {KEY: key, **row}
        line = json.dumps(full).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                if file.tell() and not self._ends_a_line(file.fileno(), file.tell()):
                    line = b"\n" + line  # behind a line that a kill cut short
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise disk_error(self.path, error) from error
        self.rows[key] = full

    @staticmethod
    def _ends_a_line(file: int, size: int) -> bool:
        return os.pread(file, 1, size - 1) == b"\n"
