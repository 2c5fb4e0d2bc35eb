"""A part of an index: documents that were added together, and their posting lists."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ...core.errors import CheckpointError
from ...core.files import write_text
from ...core.reading import read_bytes
from .lexical import Stems
from .postings import Postings


@dataclass
class Segment:
    """Posting lists, the ids and texts of their documents, and which of them were deleted.

    texts: empty where they are not kept.  stems: None where the index has no BM25.
    deleted: numbers of documents.
    """

    postings: Postings
    ids: list[str]
    texts: list[str]
    stems: Stems | None = None
    deleted: set[int] = field(default_factory=set[int])
    file: str = ""  # its name on the disk, by its content; "" = not written yet

    @property
    def alive(self) -> np.ndarray:
        """(documents,) bool."""
        found = np.ones(self.postings.count, bool)
        found[list(self.deleted)] = False
        return found

    def write(self, folder: Path, stored: str) -> str:
        """Write it once; returns the SHA-256 of what is there.  Raises: TrainingError."""
        arrays = self.postings.encode(stored) | _packed("ids", self.ids)
        if self.stems is not None:
            arrays |= self.stems.encode() | _packed("names", self.stems.names)
        data = save(arrays | _packed("texts", self.texts))
        digest = hashlib.sha256(data).hexdigest()
        self.file = f"{digest[:16]}.safetensors"
        if not (folder / self.file).exists():
            write_text(folder / self.file, data)
        return digest

    @classmethod
    def read(cls, path: Path, count: int, digest: str, deleted: Sequence[int]) -> Segment:
        """What `write` wrote.  Raises: CheckpointError if it is damaged."""
        try:
            data = read_bytes(path)
            if hashlib.sha256(data).hexdigest() != digest:
                raise ValueError("bytes that changed after they were written")
            arrays = load(data)
            ids, texts = _unpacked("ids", arrays), _unpacked("texts", arrays)
            if len(ids) != count or len(texts) not in (0, count):
                raise ValueError(f"{len(ids)} ids of {count} documents")
            if any(type(number) is not int or not 0 <= number < count for number in deleted):
                raise ValueError("deleted documents that are not there")
            postings = Postings.decode(arrays, count)
            stems = None
            if "names" in arrays:
                stems = Stems.decode(arrays, _unpacked("names", arrays), count)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            want, fix = "the file as it was written", "Copy the index again, or build it anew."
            raise CheckpointError(str(path), got=error, want=want, fix=fix) from error
        return cls(postings, ids, texts, stems, set(deleted), path.name)


def _packed(name: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Texts as one array of bytes and where each ends: tensors hold no text."""
    raw = [text.encode("utf-8", "replace") for text in texts]
    ends = np.cumsum([len(one) for one in raw], dtype=np.int64)
    return {name: np.frombuffer(b"".join(raw), np.uint8), f"{name}_end": ends}


def _unpacked(name: str, arrays: dict[str, np.ndarray]) -> list[str]:
    raw, ends = arrays[name].tobytes(), arrays[f"{name}_end"].tolist()
    starts = [0, *ends[:-1]]
    return [raw[a:b].decode("utf-8") for a, b in zip(starts, ends, strict=bool(ends))]
