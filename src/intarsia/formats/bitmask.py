"""The weights that are not 0, and a bit for each weight that says where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Format
from ..core.errors import ConfigError, ShapeError
from ..core.schema import check, setting
from ..kernels import bitmask as kernels
from .bits import pack_bits, unpack_bits
from .rows import kept_of, matrix

VALUES = ("same", "fp32", "bf16", "int8")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MOST_ROWS = 16  # of x; with more, decoding and a dense product take less time


@dataclass(frozen=True)
class Bitmask(Format):
    """The kept weights row by row and a bitmask: exact, unless they are rounded.

    At density d and b bytes a value it takes d b + 1/8 bytes a weight and 8 a row, 12 with int8.
    Stored: compressed (kept,), bitmask (out, ceil(in / 8)) uint8, the lowest bit first and each row
    from a byte of its own, row_offsets (out,) int64, where each row's weights begin in compressed;
    scales (out,) float32 of int8. A weight of more than two axes is (out, the rest), a vector one
    row. Weights of int8 are decoded to float32, others to the dtype they are stored in.

    Products of up to 16 rows of x on the CPU, not in float64, run in compiled code on the stored
    tensors; others decode it. There NaN and infinity in x reach the products through kept weights
    alone. With int8, x is rounded to int8, too, 64 inputs sharing a scale: an output is off by at
    most sum |w| max |x| / 254, and is NaN for a row of x that is not finite.

    Raises: ShapeError for a `keep` or bytes that do not fit; ConfigError for unknown values, or
    weights that are not finite, with int8.
    Source: the layout of compressed-tensors' `sparse-bitmask`. Not for dense weights.
    """

    values: str = setting(
        "same",
        'The numbers that are stored: "same", in the weight\'s own dtype, nothing is lost; '
        '"fp32"; "bf16"; "int8", w = s q with q = round(W / s) and a scale s = max |W| / 127 '
        "for each row, an error of at most s / 2.",
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
        """Encode the weights that are not 0, and a bit for each weight that says where they are.

        weight: read as (out, the rest). Returns "compressed" (n,), the stored weights row by row;
        "bitmask" (out, ceil(in / 8)) uint8; "row_offsets" (out,), where each row begins in
        "compressed"; and, for int8, "scales" (out,), a factor for each row.
        """
        keep = kept_of(weight, keep)
        mask = matrix(keep)
        # stored weights of each row
        counts = mask.sum(1)
        padded = torch.nn.functional.pad(mask, (0, -mask.shape[1] % 8)).long()
        values = weight.detach()[keep]
        scales: dict[str, Tensor] = {}
        if self.values == "int8":
            steps = _steps(matrix(weight.detach()), mask)
            step = steps.repeat_interleave(counts)
            # a row of zeros has the scale 0, by which nothing is divided
            scaled = values.float() / torch.where(step > 0, step, 1)
            values = scaled.round().clamp(-127, 127).to(torch.int8)
            scales = {"scales": steps}
        return {
            "compressed": values.to(DTYPES.get(self.values, values.dtype)),
            "bitmask": pack_bits(padded.flatten(), 1).view(len(mask), padded.shape[1] // 8),
            "row_offsets": counts.cumsum(0) - counts,
            **scales,
        }

    def decode(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return the encoded weight, 0 where nothing was stored.  Raises: ShapeError."""
        values, bits = stored["compressed"], stored["bitmask"]
        scales = stored.get("scales")
        weight = values.new_zeros(tuple(shape))
        rows, columns = matrix(weight).shape
        if bits.shape != (rows, -(-columns // 8)):
            want = f"{(rows, -(-columns // 8))} for a weight of {tuple(shape)}"
            fix = "Decode with the shape of the encoding."
            raise ShapeError("bitmask", got=tuple(bits.shape), want=want, fix=fix)
        keep = unpack_bits(bits.flatten(), 1, bits.numel() * 8).bool()
        keep = keep.view(rows, 8 * bits.shape[1])[:, :columns]
        # the number of set bits must be the number of values
        if int(keep.sum()) != len(values):
            want = f"{int(keep.sum())}, as many as bits are set"
            raise ShapeError("compressed", got=len(values), want=want, fix="Copy the file again.")
        weight = weight.masked_scatter(keep.reshape(weight.shape), values)
        return weight if scales is None else (matrix(weight) * scales[:, None]).view(tuple(shape))

    def matmul(self, x: Tensor, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return x W^T: up to MOST_ROWS rows by compiled code on the CPU, else by decoding W."""
        values, scales = stored["compressed"], stored.get("scales")
        parts = (stored["bitmask"], values, stored["row_offsets"], scales)
        # no kernel for this machine, type or shape
        if len(shape) != 2 or not kernels.runs(x, values):
            return super().matmul(x, stored, shape)
        # a few rows: the kernel decodes as it multiplies; many: it decodes tile by tile
        if x.shape[:-1].numel() > MOST_ROWS:
            if torch.is_grad_enabled() and x.requires_grad:
                return x @ kernels.decode(*parts, shape[1]).to(x.dtype).T
            return kernels.linear_many(x, *parts)
        return kernels.linear(x, *parts)

    def bound(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Any:
        """Return a prepared call x -> x W^T for few rows of x, None without a native kernel."""
        names = ("bitmask", "compressed", "row_offsets")
        bits, values, offsets = (stored[name] for name in names)
        return kernels.bound(bits, values, offsets, stored.get("scales"), shape[1], MOST_ROWS)


def _steps(weight: Tensor, mask: Tensor) -> Tensor:
    """Return the int8 scale of each row, max |w| / 127 over its stored weights: (out,) float32."""
    # weight: (out, in); mask: (out, in) bool, True = stored
    sizes = torch.where(mask, weight.float().abs(), 0)
    if not bool(sizes.isfinite().all()):
        fix = "Find where the weight became so, or use values='same'."
        raise ConfigError("weight", got="NaN or infinity", want="finite numbers", fix=fix)
    return sizes.amax(1) / 127 if sizes.shape[1] else sizes.new_zeros(len(sizes))
