"""Segments of an index: documents that were added together, and their posting lists."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save

from ...core.errors import CheckpointError
from ...core.files import parse_json, write_bytes
from ...core.sealing import map_checked
from .lexical import Stems
from .postings import Postings

TYPES = {"I64": np.int64, "I32": np.int32, "F32": np.float32, "F16": np.float16, "U8": np.uint8}
MANY = 2**14  # texts that are checked at a time


@dataclass
class Segment:
    """Segment of an index: posting lists, ids and texts of documents, and which are deleted.

    texts: [] where the index stores none.  stems: None where the index has no BM25.
    deleted: indices of deleted documents.  fields: the rest of each document's record as JSON, []
    where no document has any.
    """

    postings: Postings
    ids: Sequence[str]
    texts: Sequence[str]
    stems: Stems | None = None
    deleted: set[int] = field(default_factory=set[int])
    file: str = ""  # its name on the disk, a digest of its content; "" = not written yet
    fields: Sequence[str] = field(default_factory=list[str])

    @cached_property
    def records(self) -> list[Mapping[str, Any]]:
        """The fields of each document, {} for one without any."""
        return [_record(text) for text in self.fields] or [{}] * len(self.ids)

    def fields_of(self, number: int) -> Mapping[str, Any]:
        """Return the fields of one document.  number: its own."""
        return _record(self.fields[number]) if self.fields else {}

    @property
    def alive(self) -> np.ndarray:
        """Mask of documents that are not deleted, (documents,) bool."""
        mask = np.ones(self.postings.count, bool)
        mask[list(self.deleted)] = False
        return mask

    def write(self, folder: Path, stored: str) -> str:
        """Write the segment, unless its file exists; return its SHA-256.

        stored: type of the weights, such as "float16".  Raises: TrainingError.
        """
        arrays = self.postings.encode(stored) | _pack_texts("ids", self.ids)
        if self.stems is not None:
            arrays |= self.stems.encode() | _pack_texts("names", self.stems.names)
        if self.fields:
            arrays |= _pack_texts("fields", self.fields)
        data = save(arrays | _pack_texts("texts", self.texts))
        digest = hashlib.sha256(data).hexdigest()
        # named by content: an equal segment is written once, whatever index it is in
        self.file = f"{digest[:16]}.safetensors"
        if not (folder / self.file).exists():
            write_bytes(folder / self.file, data)
        return digest

    @classmethod
    def read(cls, path: Path, count: int, digest: str, deleted: Sequence[int]) -> Segment:
        """Read a file that `write` wrote.

        count, digest, deleted: documents, SHA-256 and deleted documents by meta.json.  Raises:
          CheckpointError if it is damaged.
        """
        try:
            content = map_checked(path, digest)
            arrays = arrays_of(content)
            ids, texts = unpacked_texts("ids", arrays), unpacked_texts("texts", arrays)
            fields = unpacked_texts("fields", arrays) if "fields" in arrays else []
            if len(ids) != count or not {len(texts), len(fields)} <= {0, count}:
                raise ValueError(f"{len(ids)} ids of {count} documents")
            # `type`, since JSON's true would pass as an int
            if any(type(number) is not int or not 0 <= number < count for number in deleted):
                raise ValueError("deleted documents that are not there")
            postings = Postings.decode(arrays, count)
            stems = None
            if "names" in arrays:
                stems = Stems.decode(arrays, list(unpacked_texts("names", arrays)), count)
            if isinstance(content, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                content.madvise(mmap.MADV_DONTNEED)  # what was only checked leaves the memory
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            want, fix = "the file as it was written", "Copy the index again, or build it anew."
            raise CheckpointError(str(path), got=error, want=want, fix=fix) from error
        return cls(postings, ids, texts, stems, set(deleted), path.name, fields)


def _record(text: str) -> Mapping[str, Any]:
    """Read the fields of a document.  Raises: CheckpointError for text that is no JSON object."""
    try:
        if isinstance(record := parse_json(text), dict):
            return record
        error = type(record).__name__
    except ValueError as caught:
        error = str(caught)
    want, fix = "one JSON object", "Copy the index again, or build it anew."
    raise CheckpointError("fields of a document", got=error, want=want, fix=fix)


def packed_fields(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the fields of documents as JSON, [] if none has any.

    records: of each document; a value that JSON has no form for is stored as its text.
    """
    if not any(records):
        return []
    return [json.dumps(dict(record), ensure_ascii=False, default=str) for record in records]


def joined_fields(segments: Sequence[Segment]) -> list[Sequence[str]]:
    """Return the fields of segments to be joined: {} where only others have some."""
    if not any(segment.fields for segment in segments):
        return [[] for _ in segments]
    return [segment.fields or ["{}"] * len(segment.ids) for segment in segments]


def alive_texts(texts: Sequence[Sequence[str]], alive: Sequence[np.ndarray]) -> list[str]:
    """Join the texts (or ids) of segments, leaving out deleted documents."""
    # a segment has a text for each document, or none at all
    pairs = zip(texts, alive, strict=True)
    return [
        text
        for of_segment, mask in pairs
        for text, keep in zip(of_segment, mask, strict=bool(of_segment))
        if keep
    ]


def _pack_texts(name: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Encode texts as tensors: one array of bytes, and the end of each text."""
    raw = [text.encode("utf-8", "replace") for text in texts]
    ends = np.cumsum([len(encoded) for encoded in raw], dtype=np.int64)
    return {name: np.frombuffer(b"".join(raw), np.uint8), f"{name}_end": ends}


class PackedTexts(Sequence[str]):
    """Texts that stay bytes, possibly mapped from a file, until each is read.

    raw: (bytes,) uint8, all texts in UTF-8; ends: (texts,) int64, where each ends.
    Raises: ValueError for bytes that are no texts, or ends that do not fit.
    """

    def __init__(self, raw: np.ndarray, ends: np.ndarray) -> None:
        """Check that the texts are UTF-8, and that their ends fit."""
        starts = np.concatenate([np.zeros(1, np.int64), ends])
        if (np.diff(starts) < 0).any() or starts[-1] != len(raw):
            raise ValueError("texts whose lengths do not fit")
        # whole bytes of UTF-8, of which no text begins inside a character
        for first in range(0, len(ends), MANY):
            part = slice(starts[first], starts[min(first + MANY, len(ends))])
            raw[part].tobytes().decode("utf-8")
        begins = starts[:-1][np.diff(starts) > 0]
        if (raw[begins] & 0xC0 == 0x80).any():
            raise ValueError("a text that begins inside a character")
        self.raw, self.starts = raw, starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        number = range(len(self))[place]
        part = slice(self.starts[number], self.starts[number + 1])
        return self.raw[part].tobytes().decode("utf-8")

    def __eq__(self, other: object) -> bool:
        """Return True for the same texts in any sequence."""
        return isinstance(other, Sequence) and list(self) == list(other)


def unpacked_texts(name: str, arrays: dict[str, np.ndarray]) -> Sequence[str]:
    """Return the texts that `_pack_texts` encoded, each decoded when it is read."""
    return PackedTexts(arrays[name], arrays[f"{name}_end"])


def arrays_of(content: mmap.mmap | bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file by name, without a copy.

    Raises: ValueError, KeyError, TypeError for another.
    """
    size = int.from_bytes(content[:8], "little")
    header = parse_json(content[8 : 8 + size])
    arrays: dict[str, np.ndarray] = {}
    for name, described in header.items():
        if name == "__metadata__":
            continue
        shape, (first, last) = described["shape"], described["data_offsets"]
        kind, length = np.dtype(TYPES[described["dtype"]]), math.prod(shape)
        if last - first != length * kind.itemsize:
            raise ValueError(f"{name} of {last - first} bytes")
        arrays[name] = np.frombuffer(content, kind, length, 8 + size + first).reshape(shape)
    return arrays
