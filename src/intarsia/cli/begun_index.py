"""An index that a stopped `intarsia index` has begun, and the command that goes on with it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.files import read_json


def settings_file(partial: Path) -> Path:
    """Return the file beside a begun index that has its documents and options."""
    return partial.with_name(f"{partial.name}.json")


def known_by(docs: str) -> list[Any]:
    """Return a path, and its file's size and time, by which documents are known unread."""
    path = Path(docs)
    file = path / "corpus.jsonl" if path.is_dir() else path
    if not file.is_file():
        return [docs]
    # Documents may be gigabytes: their size and time are compared, not a hash of them.
    return [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]


def check_same(partial: Path, settings: dict[str, Any], out: Path) -> None:
    """Check that an index that was begun was begun with these settings.

    partial: folder of what was encoded; out: the index's.  Raises: ConfigError.
    """
    try:
        before = read_json(settings_file(partial))
    except (OSError, ValueError):
        # A settings file that cannot be read belongs to no known command: it is refused as another.
        before = None
    if before != settings:
        got = "an index that was begun of other documents, or with other options"
        fix = f"Repeat that command, or begin anew: rm -r {shlex.quote(str(partial))}"
        raise ConfigError(f"--out {out}", got=got, want="the same command again", fix=fix)
