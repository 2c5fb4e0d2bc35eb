"""Files of an index: segments named by their content, query weights, and meta.json.

Files of segments never change; meta.json is replaced last and lists those that form the index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from ...core.errors import CheckpointError, ConfigError
from ...core.files import read_json, repaired, write_json
from ...core.folders import AN_INDEX, INDEX, check_index
from ...core.sealing import check_sealed, sealed, sha256
from .lexical import Lexical
from .query_weights import TOKENIZER, WEIGHTS, QueryWeights
from .segment import Segment

KIND, VERSION = "intarsia sparse index", 2
QUERIES = (TOKENIZER, WEIGHTS)


class SavedIndex(NamedTuple):
    """Contents of an index's folder.  metadata: model, digest and stored, see `SparseIndex`."""

    queries: QueryWeights
    segments: list[Segment]
    metadata: dict[str, str]
    lexical: Lexical | None


def check_folder(folder: Path) -> bool:
    """Return True if a folder has an index, which may be replaced; False if it is new or empty.

    Raises: ConfigError for a folder with other files.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        metadata = read_json(folder / INDEX)
    except (OSError, ValueError):
        metadata = None
    # other programmes write a meta.json, too
    if not isinstance(metadata, dict) or metadata.get("kind") != KIND:
        got, want = "a file, or other files in it", "a new folder, or one of an index"
        raise ConfigError(f"folder {folder}", got=got, want=want, fix="Choose another.")
    return True


def write_index(
    folder: Path,
    queries: QueryWeights,
    segments: Sequence[Segment],
    metadata: Mapping[str, str],
    lexical: Lexical | None,
) -> None:
    """Write new segments and meta.json into an existing folder, and delete unlisted segments.

    metadata: model, digest and stored; lexical: settings of BM25, None = without.
    """
    rows = [
        {
            "docs": s.postings.count,
            "sha256": s.write(folder, metadata["stored"]),
            "file": s.file,
            "deleted": sorted(s.deleted),
        }
        for s in segments
    ]
    # meta.json is written after all files that it lists
    queries.save(folder)
    written = {"kind": KIND, "version": VERSION} | dict(metadata) | {"segments": rows}
    written |= {"lexical": None if lexical is None else asdict(lexical)}
    write_json(folder / INDEX, sealed(written, {name: sha256(folder / name) for name in QUERIES}))
    named = {INDEX, TOKENIZER, WEIGHTS, *(row["file"] for row in rows)}
    for path in folder.glob("*.safetensors"):  # of segments that were merged
        if path.name not in named:
            path.unlink()


def read_index(folder: Path) -> SavedIndex:
    """Read the index of a folder that `write_index` wrote.

    Raises: CheckpointError for a folder that is damaged, or has no index.
    """
    repaired(folder)
    check_index(folder)
    want, fix = AN_INDEX
    try:
        record = read_json(folder / INDEX)
        if record["kind"] != KIND or record["version"] != VERSION:
            raise ValueError(f"{record['kind']!r}, version {record['version']!r}")
        record = check_sealed(folder / INDEX, record, needs=QUERIES)
        metadata = {name: str(record[name]) for name in ("model", "digest", "stored")}
        lexical = None if record["lexical"] is None else Lexical(**record["lexical"])
        rows = [
            (folder / Path(row["file"]).name, int(row["docs"]), row["sha256"], row["deleted"])
            for row in record["segments"]
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"folder {folder}", got=error, want=want, fix=fix) from error
    # each segment is checked against its SHA-256
    segments = [Segment.read(*row) for row in rows]
    if any((s.stems is None) != (lexical is None) for s in segments):
        fix = "Copy the index again from its source, or build it anew."
        got, want = "segments with stems and without", "those that meta.json says"
        raise CheckpointError(f"folder {folder}", got=got, want=want, fix=fix)
    return SavedIndex(QueryWeights.load(folder), segments, metadata, lexical)
