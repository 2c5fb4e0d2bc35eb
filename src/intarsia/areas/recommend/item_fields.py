"""Vectors of items from their metadata, without an id: new items have one at once."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import DataError
from ...data.interactions import SEVERAL, ItemField

WORDS, TEXT, NUMBER = "words", "text", "number"
BUCKETS, HASHES, MANY = 16, 2**14, 256  # of numbers; of words of a text; values of a closed list
LONGEST = 32  # words of an item under one name
UNKNOWN = 0.05  # share of the values that are unknown in training, so that "unknown" is learned
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class FieldCoding:
    """Coding of a metadata field's values as whole numbers; 0 = not known.

    name: the field's;  kind: "words", indices into `words`; "text", hashes of words and of pairs
    of neighbours; "number", the bucket between `edges`, quantiles of the training items.
    """

    name: str
    kind: str
    words: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()

    @classmethod
    def of(cls, name: str, values: ItemField) -> FieldCoding:
        """Choose the coding of a field by its values; lists of many different words are a text."""
        if values.kind == "float":
            numbers = np.array([v for v in values.values if not np.isnan(v)])
            shares = np.linspace(0, 1, BUCKETS + 1)[1:-1]
            edges = np.unique(np.quantile(numbers, shares)) if len(numbers) else []
            return cls(name, NUMBER, edges=tuple(float(e) for e in edges))
        # a closed list of values gets an index each, free text is hashed
        counts = Counter(word for words in values.values for word in words)
        if values.kind == SEVERAL and len(counts) > max(MANY, len(values.values) // 2):
            return cls(name, TEXT)
        return cls(name, WORDS, words=tuple(sorted(counts)))

    @property
    def size(self) -> int:
        """Number of codes, 0 included."""
        return {WORDS: len(self.words) + 1, TEXT: HASHES, NUMBER: len(self.edges) + 2}[self.kind]

    def codes(self, values: ItemField) -> Array:
        """Code values as whole numbers, (items, longest), padded with -1; 0 = an unknown value."""
        if self.kind == NUMBER:
            numbers = np.asarray(values.values, dtype=float)
            # numbers are coded by the interval that they lie in; 0 is a number that is missing
            bucket = np.digitize(numbers, np.asarray(self.edges)) + 1
            return np.where(np.isnan(numbers), 0, bucket)[:, None]
        if self.kind == TEXT:
            rows = [hashes(words)[:LONGEST] or [0] for words in values.values]
        else:
            place = {word: i for i, word in enumerate(self.words, 1)}
            rows = [[place.get(w, 0) for w in words[:LONGEST]] or [0] for words in values.values]
        codes = np.full((len(rows), max(map(len, rows), default=1)), -1, dtype=np.int64)
        for i, row in enumerate(rows):
            codes[i, : len(row)] = row
        return codes


def hashes(words: Sequence[str]) -> list[int]:
    """Hash words and pairs of neighbouring words to 1 ... HASHES - 1, alike on every machine."""
    low = [word.lower() for word in words]
    both = [*low, *(f"{a} {b}" for a, b in zip(low, low[1:], strict=False))]
    return [1 + zlib.crc32(word.encode()) % (HASHES - 1) for word in both]


class FieldVectors(nn.Module):
    """Item vectors e_i = MLP([field 1 | field 2 | ...]), each field the mean of its codes' vectors.

    fields: (n,) values each;  width: of a vector.  forward() -> (n + 1, width), row 0 is no item
    and 0. In training 5 % of the values are replaced by "unknown". The number of parameters does
    not depend on the number of items.
    Raises: DataError for no field.
    """

    def __init__(
        self, fields: Mapping[str, ItemField], width: int, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        if not fields:
            got, want = "items of which nothing is known", "one field at least"
            fix = "Write a .item file beside the .inter file, or use a model of ids (SASRec)."
            raise DataError("item fields", got=got, want=want, fix=fix)
        self.coding = tuple(FieldCoding.of(name, field) for name, field in fields.items())
        field_width = max(8, width // 2)
        self.tables = nn.ModuleList(nn.Embedding(c.size, field_width) for c in self.coding)
        self.mlp = nn.Sequential(
            nn.Linear(field_width * len(self.coding), 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
        )
        for table in self.tables:
            # a vector has length 1 or so, whatever its width
            nn.init.normal_(table.weight, std=field_width**-0.5, generator=generator)  # pyright: ignore
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.xavier_uniform_(layer.weight, generator=generator)  # pyright: ignore
            nn.init.zeros_(layer.bias)  # pyright: ignore
        self.set(fields)

    def set(self, fields: Mapping[str, ItemField]) -> None:
        """Replace the items, by their fields, without a change of any weight.

        fields: name -> its values for all items. Raises: DataError for a field that is missing.
        """
        for coding in self.coding:
            if coding.name not in fields:
                fix = "Give the new items the fields of the old ones; a value may be empty."
                got = f"no {coding.name!r} among {sorted(fields)}"
                raise DataError("fields of items", got=got, want=f"{coding.name!r}", fix=fix)
        device = next(self.parameters()).device
        for i, coding in enumerate(self.coding):
            codes = torch.from_numpy(coding.codes(fields[coding.name]))
            none = torch.full((1, codes.shape[1]), -1)
            self.register_buffer(f"codes{i}", torch.cat([none, codes]).to(device), persistent=False)

    def codes(self, place: int) -> Tensor:
        """Return the codes of the field at index `place`, (n + 1, longest), -1 = none."""
        return getattr(self, f"codes{place}")

    def forward(self, items: Tensor | None = None, without: int | None = None) -> Tensor:
        """Compute vectors of items, (..., width).

        items: their numbers from 1, None = all (n + 1,); without: number of a field to treat as
          unknown, None = none.
        """
        parts: list[Tensor] = []
        for i, table in enumerate(self.tables):
            codes = self.codes(i) if items is None else self.codes(i)[items]
            # the mean over an item's codes; padding counts for nothing
            present = codes >= 0
            indices = codes.clamp_min(0)
            if self.training:
                indices = indices.masked_fill(
                    torch.rand(indices.shape, device=indices.device) < UNKNOWN, 0
                )
            if without == i:
                indices = torch.zeros_like(indices)
            mean = (table(indices) * present[..., None]).sum(1) / present.sum(
                1, keepdim=True
            ).clamp_min(1)
            parts.append(mean)
        # only row 0, no item, has no code at all
        empty = (self.codes(0) if items is None else self.codes(0)[items])[:, :1] < 0
        return self.mlp(torch.cat(parts, -1)).masked_fill(empty, 0)


class IdVectors(nn.Module):
    """Learned vector for each item, as SASRec has (arXiv:1808.09781).  () -> (n + 1, width)."""

    def __init__(self, count: int, width: int, *, generator: torch.Generator) -> None:
        """Draw a vector for each item, and 0 for number 0, no item."""
        super().__init__()
        self.table = nn.Embedding(count + 1, width, padding_idx=0)
        with torch.no_grad():
            self.table.weight[1:].normal_(std=width**-0.5, generator=generator)

    def forward(self, items: Tensor | None = None) -> Tensor:
        return self.table.weight if items is None else self.table(items)
