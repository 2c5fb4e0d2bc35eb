"""The weights that are not 0, and a bit for each weight that says where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Format
from ..core.errors import ShapeError
from .bits import pack_bits, unpack_bits
from .rows import kept_of, matrix


@dataclass(frozen=True)
class Bitmask(Format):
    """The kept weights row by row, in their own dtype, and a bitmask: exact, with nothing lost.

    At density d and b bytes a weight it takes d b + 1/8 bytes a weight and 8 a row.
    Stored: compressed (kept,), bitmask (out, ceil(in / 8)) uint8, the lowest bit first and each row
    from a byte of its own, row_offsets (out,) int64, where each row's weights begin in compressed.
    A weight of more than two axes is (out, the rest), a vector one row.

    Raises: ShapeError for a `keep` or bytes that do not fit.
    Source: the layout of compressed-tensors' `sparse-bitmask`. Not for dense weights.
    """

    def encode(
        self, weight: Tensor, keep: Tensor | None = None, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        """keep: None = what is not 0."""
        keep = kept_of(weight, keep)
        kept = matrix(keep)
        counts = kept.sum(1)
        padded = torch.nn.functional.pad(kept, (0, -kept.shape[1] % 8)).long()
        return {
            "compressed": weight.detach()[keep],
            "bitmask": pack_bits(padded.flatten(), 1).view(len(kept), padded.shape[1] // 8),
            "row_offsets": counts.cumsum(0) - counts,
        }

    def decode(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        values, bits = stored["compressed"], stored["bitmask"]
        weight = values.new_zeros(tuple(shape))
        rows, columns = matrix(weight).shape
        if bits.shape != (rows, -(-columns // 8)):
            want = f"{(rows, -(-columns // 8))} for a weight of {tuple(shape)}"
            fix = "Decode with the shape of the encoding."
            raise ShapeError("bitmask", got=tuple(bits.shape), want=want, fix=fix)
        keep = unpack_bits(bits.flatten(), 1, bits.numel() * 8).bool()
        keep = keep.view(rows, 8 * bits.shape[1])[:, :columns]
        if int(keep.sum()) != len(values):
            want = f"{int(keep.sum())}, as many as bits are set"
            raise ShapeError("compressed", got=len(values), want=want, fix="Copy the file again.")
        return weight.masked_scatter(keep.reshape(weight.shape), values)
