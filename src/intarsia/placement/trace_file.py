"""What is known of a recorded trace by its file's head, without torch."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import DataError
from ..core.folders import describe_folder
from ..core.reading import open_tensors

FORMAT = "intarsia trace"


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a trace.  Raises: DataError for anything else."""
    from safetensors import SafetensorError

    if not Path(path).is_file():
        raise no_trace(path, describe_folder(Path(path)) if Path(path).exists() else "no such file")
    try:
        with open_tensors(path, "np") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise no_trace(path, error) from error
    if metadata.get("format") != FORMAT:
        raise no_trace(path, f"format {metadata.get('format')!r}")
    return metadata


def no_trace(path: str | Path, got: object) -> DataError:
    """Return the error for a file that is no trace; got: what it is, or what reading it raised."""
    fix = "Record one: intarsia trace MODEL TEXT --out t.safetensors"
    want = "a file that `intarsia trace` wrote"
    return DataError(f"trace {path}", got=got, want=want, fix=fix)
