"""The vector of an item out of what is known of it, without an id: new items have one at once."""

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
    """How the values under one name become whole numbers; 0 = not known.

    how: "words", places in `words`; "text", hashes of words and of pairs of neighbours; "number",
    the bucket between `edges`, quantiles of the training items.
    """

    name: str
    how: str
    words: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()

    @classmethod
    def of(cls, name: str, values: ItemField) -> FieldCoding:
        """The coding of a field's own values: a sequence of many different words is a text."""
        if values.kind == "float":
            known = np.array([v for v in values.values if not np.isnan(v)])
            shares = np.linspace(0, 1, BUCKETS + 1)[1:-1]
            edges = np.unique(np.quantile(known, shares)) if len(known) else []
            return cls(name, NUMBER, edges=tuple(float(e) for e in edges))
        counts = Counter(word for one in values.values for word in one)
        if values.kind == SEVERAL and len(counts) > max(MANY, len(values.values) // 2):
            return cls(name, TEXT)
        return cls(name, WORDS, words=tuple(sorted(counts)))

    @property
    def size(self) -> int:
        """How many codes there are, 0 among them."""
        return {WORDS: len(self.words) + 1, TEXT: HASHES, NUMBER: len(self.edges) + 2}[self.how]

    def codes(self, values: ItemField) -> Array:
        """(items, most) int64, -1 after the last; an item of which nothing is known has a 0."""
        if self.how == NUMBER:
            found = np.asarray(values.values, dtype=float)
            bucket = np.digitize(found, np.asarray(self.edges)) + 1
            return np.where(np.isnan(found), 0, bucket)[:, None]
        if self.how == TEXT:
            rows = [hashes(one)[:LONGEST] or [0] for one in values.values]
        else:
            place = {word: i for i, word in enumerate(self.words, 1)}
            rows = [[place.get(w, 0) for w in one[:LONGEST]] or [0] for one in values.values]
        codes = np.full((len(rows), max(map(len, rows), default=1)), -1, dtype=np.int64)
        for i, row in enumerate(rows):
            codes[i, : len(row)] = row
        return codes


def hashes(words: Sequence[str]) -> list[int]:
    """Words and pairs of neighbours as numbers from 1 on, the same on every machine."""
    low = [word.lower() for word in words]
    both = [*low, *(f"{a} {b}" for a, b in zip(low, low[1:], strict=False))]
    return [1 + zlib.crc32(word.encode()) % (HASHES - 1) for word in both]


class FieldVectors(nn.Module):
    """e_i = MLP([field 1 | field 2 | ...]), the mean of a field's codes' vectors each.

    Place 0 is no item, and 0. In training 5 % of the values are unknown.
    fields: of the items, (n,) values each.  -> () -> (n + 1, width).
    Parameters do not grow with the items.
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
        self.coding = tuple(FieldCoding.of(name, one) for name, one in fields.items())
        each = max(8, width // 2)
        self.tables = nn.ModuleList(nn.Embedding(c.size, each) for c in self.coding)
        self.mlp = nn.Sequential(
            nn.Linear(each * len(self.coding), 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        for table in self.tables:
            nn.init.normal_(table.weight, std=each**-0.5, generator=generator)  # pyright: ignore
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.xavier_uniform_(layer.weight, generator=generator)  # pyright: ignore
            nn.init.zeros_(layer.bias)  # pyright: ignore
        self.set(fields)

    def set(self, fields: Mapping[str, ItemField]) -> None:
        """Have these items in the place of those before.

        Raises: DataError for a field that is missing.
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
        """The codes of a field.  -> (n + 1, most), -1 = none."""
        return getattr(self, f"codes{place}")

    def forward(self, items: Tensor | None = None, without: int | None = None) -> Tensor:
        """items: places, None = all.  without: a field that is taken as unknown."""
        parts: list[Tensor] = []
        for i, table in enumerate(self.tables):
            codes = self.codes(i) if items is None else self.codes(i)[items]
            there = codes >= 0
            known = codes.clamp_min(0)
            if self.training:
                known = known.masked_fill(torch.rand(known.shape, device=known.device) < UNKNOWN, 0)
            if without == i:
                known = torch.zeros_like(known)
            mean = (table(known) * there[..., None]).sum(1) / there.sum(1, keepdim=True).clamp_min(
                1
            )
            parts.append(mean)
        empty = (self.codes(0) if items is None else self.codes(0)[items])[:, :1] < 0
        return self.mlp(torch.cat(parts, -1)).masked_fill(empty, 0)


class IdVectors(nn.Module):
    """A learned vector for each item, as SASRec has (arXiv:1808.09781).  () -> (n + 1, width)."""

    def __init__(self, count: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.table = nn.Embedding(count + 1, width, padding_idx=0)
        with torch.no_grad():
            self.table.weight[1:].normal_(std=width**-0.5, generator=generator)

    def forward(self, items: Tensor | None = None) -> Tensor:
        return self.table.weight if items is None else self.table(items)
