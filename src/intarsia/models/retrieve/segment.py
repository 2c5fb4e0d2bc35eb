"""Segments of an index: documents that were added together, and their posting lists."""

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
    """Segment of an index: posting lists, ids and texts of documents, and which are deleted.

    texts: [] where the index stores none.  stems: None where the index has no BM25.
    deleted: indices of deleted documents.
    """

    postings: Postings
    ids: list[str]
    texts: list[str]
    stems: Stems | None = None
    deleted: set[int] = field(default_factory=set[int])
    file: str = ""  # its name on the disk, a digest of its content; "" = not written yet

    @property
    def alive(self) -> np.ndarray:
        """Mask of documents that are not deleted, (documents,) bool."""
        mask = np.ones(self.postings.count, bool)
        mask[list(self.deleted)] = False
        return mask

    def write(self, folder: Path, stored: str) -> str:
        """Write the segment, unless its file exists; return its SHA-256.

        folder: of the index; stored: type of the weights, such as "float16".  Raises:
          TrainingError.
        """
        arrays = self.postings.encode(stored) | _pack_texts("ids", self.ids)
        if self.stems is not None:
            arrays |= self.stems.encode() | _pack_texts("names", self.stems.names)
        data = save(arrays | _pack_texts("texts", self.texts))
        digest = hashlib.sha256(data).hexdigest()
        # named by content: an equal segment is written once, whatever index it is in
        self.file = f"{digest[:16]}.safetensors"
        if not (folder / self.file).exists():
            write_text(folder / self.file, data)
        return digest

    @classmethod
    def read(cls, path: Path, count: int, digest: str, deleted: Sequence[int]) -> Segment:
        """Read a file that `write` wrote.

        path: of the file; count, digest, deleted: documents, SHA-256 and deleted documents by
          meta.json.  Raises: CheckpointError if it is damaged.
        """
        try:
            data = read_bytes(path)
            if hashlib.sha256(data).hexdigest() != digest:
                raise ValueError("bytes that changed after they were written")
            arrays = load(data)
            ids, texts = _unpack_texts("ids", arrays), _unpack_texts("texts", arrays)
            if len(ids) != count or len(texts) not in (0, count):
                raise ValueError(f"{len(ids)} ids of {count} documents")
            # `type`, since JSON's true would pass as an int
            if any(type(number) is not int or not 0 <= number < count for number in deleted):
                raise ValueError("deleted documents that are not there")
            postings = Postings.decode(arrays, count)
            stems = None
            if "names" in arrays:
                stems = Stems.decode(arrays, _unpack_texts("names", arrays), count)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            want, fix = "the file as it was written", "Copy the index again, or build it anew."
            raise CheckpointError(str(path), got=error, want=want, fix=fix) from error
        return cls(postings, ids, texts, stems, set(deleted), path.name)


def alive_texts(texts: Sequence[list[str]], alive: Sequence[np.ndarray]) -> list[str]:
    """Join the texts (or ids) of segments, without those of deleted documents.

    texts: of each segment; [] where the index stores none; alive: (documents,) bool of each, False
      = deleted.
    """
    # a segment has a text for each document, or none at all
    pairs = zip(texts, alive, strict=True)
    return [
        text
        for of_segment, mask in pairs
        for text, keep in zip(of_segment, mask, strict=bool(of_segment))
        if keep
    ]


def _pack_texts(name: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Encode texts as tensors: one array of bytes, and the end of each text.

    name: of the arrays; texts: such as ids.
    """
    raw = [text.encode("utf-8", "replace") for text in texts]
    ends = np.cumsum([len(encoded) for encoded in raw], dtype=np.int64)
    return {name: np.frombuffer(b"".join(raw), np.uint8), f"{name}_end": ends}


def _unpack_texts(name: str, arrays: dict[str, np.ndarray]) -> list[str]:
    """Decode the texts that `_pack_texts` encoded.

    name: of the arrays; arrays: bytes and the end of each text, by name.
    """
    raw, ends = arrays[name].tobytes(), arrays[f"{name}_end"].tolist()
    starts = [0, *ends[:-1]]
    return [raw[a:b].decode("utf-8") for a, b in zip(starts, ends, strict=bool(ends))]
