"""An index that a stopped `intarsia index` has begun, and the command that continues it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.files import read_json


def begun_by(out: Path) -> Path:
    """Return the folder next to --out in which an index grows until it is whole."""
    return out.with_name(f".{out.name}.part")


def settings_file(partial: Path) -> Path:
    """Return the file next to a begun index that has its documents and options."""
    return partial.with_name(f"{partial.name}.json")


def known_by(docs: str) -> list[Any]:
    """Return what identifies the documents without reading them: path, size and time of the file.

    docs: a file, a folder, or the name of a collection, which identifies itself.
    """
    path = Path(docs)
    # of a folder in BEIR's layout the documents are what matters
    file = path / "corpus.jsonl" if path.is_dir() else path
    if not file.is_file():
        return [docs]
    # Documents may be gigabytes: their size and time are compared, not a hash of them.
    return [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]


def check_same(partial: Path, settings: dict[str, Any], out: Path) -> None:
    """Check that an unfinished index was begun by the same command as this one.

    partial: folder of the blocks encoded so far. settings: documents and options of this command.
    out: the folder of the finished index, for the error.
    Raises: ConfigError.
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
