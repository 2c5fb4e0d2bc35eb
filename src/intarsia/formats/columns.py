"""The weights that are not 0, row by row, each with its column: CSR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Format
from ..core.errors import ShapeError
from ..core.schema import check, setting
from .rows import kept_of, matrix

INDEX, OFFSET = 2, 4  # bytes of a column, and of a row's first place
MOST = 2**16  # columns
VALUES = {"same": None, "fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Columns(Format):
    """The kept weights of each row, and their columns: exact in their own dtype.

    At density d and b bytes a weight it takes d (b + 2) bytes a weight and 4 a row: less than dense
    below the density of `break_even`, and less than a bitmask below 1/16.
    Stored: values (kept,), columns (kept,) uint16, row_offsets (out + 1,) int32.
    A weight of more than two axes is (out, the rest), a vector one row.
    It stores tables, whose rows are read; a product decodes the whole weight.

    Raises: ConfigError for unknown values; ShapeError for more than 65,536 columns or 2^31 - 1 kept
    weights, and for a `keep` or stored tensors that do not fit.
    Source: DSL (arXiv:2402.02855) stores tables by rows. Not for dense weights, nor for layers.
    """

    values: str = setting(
        "same",
        'The numbers that are stored: "same", the weight\'s own dtype; "fp32"; "bf16".',
        choices=tuple(VALUES),
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def exact(self) -> bool:
        """True for values in the weight's own dtype."""
        return self.values == "same"

    def encode(
        self, weight: Tensor, keep: Tensor | None = None, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Encode the weights that are not 0 row by row, each with the number of its column (CSR).

        Returns "values" (n,), "columns" (n,) uint16, the column of each, and "row_offsets" (out +
        1,) int32, where each row begins in "values".
        Raises: ShapeError for more columns or weights than these types can count.
        """
        keep = kept_of(weight, keep)
        mask, width = matrix(keep), matrix(weight).shape[1]
        counts = mask.sum(1)
        if width > MOST or int(counts.sum()) >= 2**31:
            got = f"{width:,} columns, {int(counts.sum()):,} kept"
            want, fix = f"at most {MOST:,} columns and 2^31 - 1 kept", "Use Bitmask."
            raise ShapeError("weight", got=got, want=want, fix=fix)
        ends = counts.cumsum(0).to(torch.int32)
        return {
            "values": weight.detach()[keep].to(VALUES[self.values] or weight.dtype),
            "columns": mask.nonzero()[:, 1].to(torch.uint16),
            "row_offsets": torch.cat([ends.new_zeros(1), ends]),
        }

    def decode(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return the encoded weight, 0 where nothing was stored.  Raises: ShapeError."""
        values, columns, offsets = (stored[n] for n in ("values", "columns", "row_offsets"))
        weight = values.new_zeros(tuple(shape))
        dense, columns = matrix(weight), columns.long()
        counts = offsets.long().diff()
        fits = len(counts) == len(dense) and len(values) == len(columns) == int(offsets[-1])
        # offsets that fall, or columns outside, are of no such weight
        fits = fits and not int(offsets[0]) and bool((counts >= 0).all())
        if not fits or bool((columns >= dense.shape[1]).any()):
            got = f"{len(counts)} rows of {len(values)} values and {len(columns)} columns"
            want, fix = f"what a weight of {tuple(shape)} becomes", "Decode with its own shape."
            raise ShapeError("rows", got=got, want=want, fix=fix)
        rows = torch.arange(len(dense), device=values.device).repeat_interleave(counts)
        dense[rows, columns] = values  # a view of `weight`
        return weight


def break_even(width: int, itemsize: int = 2) -> float:
    """Return the density (share of weights that are not 0) below which `Columns` saves bytes."""
    return max(0.0, (itemsize * width - OFFSET) / ((itemsize + INDEX) * width)) if width else 0.0
