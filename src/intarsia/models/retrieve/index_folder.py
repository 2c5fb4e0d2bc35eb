"""The files of an index: segments by what is in them, queries, and meta.json, which names them.

Files of segments never change; meta.json is replaced last and says which of them are the index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from ...core.errors import CheckpointError, ConfigError
from ...core.files import read_json, repaired, write_json
from ...core.folders import check_kind
from ...core.sealing import check_sealed, sealed, sha256
from .lexical import Lexical
from .query_weights import TOKENIZER, WEIGHTS, QueryWeights
from .segment import Segment

META, KIND, VERSION = "meta.json", "intarsia sparse index", 2
QUERIES = (TOKENIZER, WEIGHTS)


class Saved(NamedTuple):
    """What a folder holds; about: model, digest and stored of the index."""

    queries: QueryWeights
    segments: list[Segment]
    about: dict[str, str]
    lexical: Lexical | None


def check_folder(folder: Path) -> bool:
    """Whether a folder has an index, which may be written over.

    Raises: ConfigError where something else is.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        about = read_json(folder / META)
    except (OSError, ValueError):
        about = None
    # other things have a meta.json, too
    if not isinstance(about, dict) or about.get("kind") != KIND:
        got, want = "a file, or other files in it", "a new folder, or one of an index"
        raise ConfigError(f"folder {folder}", got=got, want=want, fix="Choose another.")
    return True


def write_index(
    folder: Path,
    queries: QueryWeights,
    segments: Sequence[Segment],
    about: Mapping[str, str],
    lexical: Lexical | None,
) -> None:
    """Write what is new into a folder that is there, and delete what is no longer named."""
    rows = [
        {"docs": s.postings.count, "sha256": s.write(folder, about["stored"]), "file": s.file,
         "deleted": sorted(s.deleted)}
        for s in segments
    ]  # fmt: skip
    queries.save(folder)
    written = {"kind": KIND, "version": VERSION} | dict(about) | {"segments": rows}
    written |= {"lexical": None if lexical is None else asdict(lexical)}
    write_json(folder / META, sealed(written, {name: sha256(folder / name) for name in QUERIES}))
    named = {META, TOKENIZER, WEIGHTS, *(row["file"] for row in rows)}
    for path in folder.glob("*.safetensors"):  # of segments that were merged
        if path.name not in named:
            path.unlink()


def read_index(folder: Path) -> Saved:
    """Read what `write_index` wrote.

    Raises: CheckpointError for a folder that is damaged, or of something else.
    """
    repaired(folder)
    want, fix = "the folder of an index", "For one: intarsia index docs.jsonl --save idx"
    check_kind(folder, META, what=f"folder {folder}", want=want, fix=fix)
    try:
        about = read_json(folder / META)
        if about["kind"] != KIND or about["version"] != VERSION:
            raise ValueError(f"{about['kind']!r}, version {about['version']!r}")
        about = check_sealed(folder / META, about, needs=QUERIES)
        own = {name: str(about[name]) for name in ("model", "digest", "stored")}
        lexical = None if about["lexical"] is None else Lexical(**about["lexical"])
        rows = [
            (folder / Path(row["file"]).name, int(row["docs"]), row["sha256"], row["deleted"])
            for row in about["segments"]
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"folder {folder}", got=error, want=want, fix=fix) from error
    segments = [Segment.read(*row) for row in rows]
    if any((s.stems is None) != (lexical is None) for s in segments):
        fix = "Copy the index again from its source, or build it anew."
        got, want = "segments with stems and without", "those that meta.json says"
        raise CheckpointError(f"folder {folder}", got=got, want=want, fix=fix)
    return Saved(QueryWeights.load(folder), segments, own, lexical)
