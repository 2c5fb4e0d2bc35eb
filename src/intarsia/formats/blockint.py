"""Dense weights at 4 or 8 bits in blocks of 32 with a scale each: the values of GGUF's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Format
from ..core.checks import one_of
from ..core.errors import ShapeError
from ..kernels import blockint as kernels
from ..kernels.blockint import BLOCK, BUNDLE
from .rows import finite, kept_of, matrix

LARGEST = torch.finfo(torch.float16).max
PIECE = 4_000_000  # weights that are rounded at a time
HEAD = 2  # bytes of the scale before the codes of a block of GGUF


@dataclass(frozen=True)
class BlockInt(Format):
    """w = d (q - 2^(b-1)) in blocks of 32 weights of a row, all of them stored.

    bits: b, 8 or 4, with the values of GGUF's types Q8_0 and Q4_0, which `of_gguf` reads and
    `to_gguf` writes without a loss. 8: d = max |w| / 127; 4: d = w* / -8, w* the weight of largest
    size with its sign; d in float16, q rounded. 0 is stored as 0.
    Stored: codes (R / 16, K, b, 16, 4) uint8, scales (R / 16, K, 16) float16 for R rows, up to a
    multiple of 16, and K blocks a row: 16 rows side by side, as the kernel reads them. 8.5 or 4.5
    bits a weight. A weight of more than two axes is (out, the rest), a vector one row.

    Products on the CPU, of any number of rows of x, run in compiled code on the stored tensors, x
    being rounded to int8 with a scale for each 32 inputs: an output is off by at most sum |w| max
    |x| / 254, and is NaN for a row of x that is not finite. Those that need a gradient, or are in
    float64, decode the weight.

    Raises: ConfigError for other bits; DataError for weights that are not finite; ShapeError for a
    `keep`, or bytes, that do not fit. Not for pruned weights: zeros take as many bits as others.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        one_of("bits", self.bits, (4, 8))

    def encode(
        self, weight: Tensor, keep: Tensor | None = None, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Encode a weight in blocks of 32 along a row: a scale for each, b = 4 or 8 bits a weight.

        weight: read as R rows of K blocks. Returns "codes" (R / 16, K, b, 16, 4) uint8, the
        integers of 16 rows side by side, and "scales" (R / 16, K, 16) float16, of their blocks; R
        is rounded up to a multiple of 16. Raises: DataError for weights that are not finite.
        """
        rows = matrix(weight)
        mask = None if keep is None else matrix(kept_of(weight, keep))
        # some bundles at a time, since rounding takes six times a piece's memory
        count = max(1, PIECE // max(1, rows.shape[1] * BUNDLE)) * BUNDLE
        parts: dict[str, list[Tensor]] = {"codes": [], "scales": []}
        for first in range(0, max(1, len(rows)), count):
            w = finite(rows[first : first + count])
            w = w if mask is None else w.masked_fill(~mask[first : first + count], 0)
            padded = torch.nn.functional.pad(w, (0, -w.shape[1] % BLOCK))
            blocks = padded.view(len(w), padded.shape[1] // BLOCK, BLOCK)
            for name, part in self._bundle(*self._rounded(blocks)).items():
                parts[name].append(part)
        return {name: torch.cat(some) for name, some in parts.items()}

    def _rounded(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Round weights to codes q (R, K, 32) uint8 and scales d (R, K) float16, as GGUF does."""
        # R rows of K blocks; a weight is decoded as d (q - 2^(b-1)), b bits
        sizes = blocks.abs()
        if self.bits == 8:
            d = sizes.amax(2) / 127
            steps = blocks * _inverse(d)[..., None]
            # half away from zero, as GGUF rounds; torch rounds half to even
            codes = steps.sign() * (steps.abs() + 0.5).floor() + 128
        else:
            # the weight of largest size, with its sign, becomes the code 0
            d = blocks.gather(2, sizes.argmax(2, keepdim=True))[..., 0] / -8
            codes = (blocks * _inverse(d)[..., None] + 8.5).floor()
        codes = codes.clamp(0, 2**self.bits - 1).to(torch.uint8)
        return codes, d.clamp(-LARGEST, LARGEST).half()

    def _bundle(self, codes: Tensor, scales: Tensor) -> dict[str, Tensor]:
        """Lay codes and scales of 16 rows each side by side, a bundle, as the kernel reads them."""
        # codes: (R, K, 32) uint8, scales: (R, K) float16; the last bundle is filled up
        missing = -len(codes) % BUNDLE
        # padding rows have the code of 0, and the scale 0
        zero = 2 ** (self.bits - 1)
        codes = torch.nn.functional.pad(codes, (0, 0, 0, 0, 0, missing), value=zero)
        scales = torch.nn.functional.pad(scales, (0, 0, 0, missing))
        # "codes": (R / 16, K, b, 16, 4) uint8, "scales": (R / 16, K, 16)
        side = scales.view(len(scales) // BUNDLE, BUNDLE, scales.shape[1]).transpose(1, 2)
        return {"codes": kernels.bundled(codes, self.bits), "scales": side.contiguous()}

    def _rows(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return codes (R, K, 32) and scales (R, K) of R rows with K blocks, row by row."""
        out, width = matrix(torch.empty(tuple(shape), device="meta")).shape
        kernels.check(stored["codes"], stored["scales"], (out, width), self.bits)
        codes = kernels.unbundled(stored["codes"], self.bits)
        return codes[:out], stored["scales"].transpose(1, 2).flatten(0, 1)[:out]

    @property
    def row_group(self) -> int:
        """Rows of a bundle, 16."""
        return BUNDLE

    def part(self, stored: Mapping[str, Tensor], first: int, count: int) -> dict[str, Tensor]:
        """Return the bundles of some rows, as views.  first, count: multiples of 16."""
        bundles = slice(first // BUNDLE, (first + count) // BUNDLE)
        return {name: tensor[bundles] for name, tensor in stored.items()}

    def decode(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return the weight in float32: (code - 2^(b-1)) times its block's scale, b bits."""
        codes, scales = self._rows(stored, shape)
        rows = (codes.float() - 2 ** (self.bits - 1)) * scales.float()[..., None]
        width = torch.Size(shape[1:]).numel() if len(shape) > 1 else shape[0]
        return rows.flatten(1)[:, :width].reshape(tuple(shape))

    def matmul(self, x: Tensor, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return x W^T, by compiled code and x in int8 on the CPU without gradients, or decoded."""
        learned = torch.is_grad_enabled() and x.requires_grad
        if learned or len(shape) != 2 or not kernels.runs(x):
            return super().matmul(x, stored, shape)
        return kernels.blockint(x, stored["codes"], stored["scales"], shape[0], self.bits)

    def bound(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Any:
        """Return a prepared call x -> x W^T for few rows of x, None without a native kernel."""
        sides = shape[0], shape[1]
        return kernels.bound(stored["codes"], stored["scales"], sides, self.bits)

    def to_gguf(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Convert an encoded matrix to the bytes of GGUF's type Q4_0 or Q8_0, without a loss.

        stored: "codes" and "scales", as `encode` returns them; shape: of the weight, (out, in).
        Returns (out, K size) uint8: K = in / 32 blocks a row, of size 18 bytes (4 bits a weight) or
        34 (8 bits).
        Raises: ShapeError for rows that are no multiple of 32 weights, which GGUF cannot have.
        """
        if len(shape) != 2 or shape[1] % BLOCK:
            want, fix = f"(out, a multiple of {BLOCK})", "Leave this tensor in 16 or 32 bits."
            raise ShapeError("weight for GGUF", got=tuple(shape), want=want, fix=fix)
        codes, scales = self._rows(stored, shape)
        # GGUF pairs columns j and j + 16 in one byte
        nibbles = codes[..., :16] | codes[..., 16:] << 4
        body = nibbles if self.bits == 4 else codes ^ 128  # two's complement
        head = scales.contiguous().view(torch.uint8).view(*scales.shape, HEAD)
        return torch.cat([head, body], 2).flatten(1)

    def of_gguf(self, data: Tensor, shape: Sequence[int]) -> dict[str, Tensor]:
        """Convert a matrix from GGUF's type Q4_0 or Q8_0 to this format's tensors, without a loss.

        data: (out, K size) uint8: K = in / 32 blocks a row, of size 18 bytes (4 bits a weight) or
        34 (8 bits). shape: of the weight, (out, in). Returns "codes" and "scales", as `encode`
        does.
        Raises: ShapeError for another number of bytes.
        """
        size = HEAD + BLOCK * self.bits // 8
        if len(shape) != 2 or data.shape != (shape[0], -(-shape[1] // BLOCK) * size):
            want = f"{size} bytes for each {BLOCK} weights of {tuple(shape)}"
            raise ShapeError("GGUF data", got=tuple(data.shape), want=want, fix="Check its type.")
        blocks = data.view(shape[0], data.shape[1] // size, size)
        scales = blocks[..., :HEAD].contiguous().view(torch.float16)[..., 0]
        body = blocks[..., HEAD:]
        # GGUF pairs columns j and j + 16 in one byte
        codes = torch.cat([body & 15, body >> 4], -1) if self.bits == 4 else body ^ 128
        return self._bundle(codes, scales)


def _inverse(d: Tensor) -> Tensor:
    """Return 1 / d, and 0 where that is not finite."""
    # of a block of zeros, or of such small weights that 1 / d overflows
    inverse = 1 / d
    return torch.where(inverse.isfinite(), inverse, 0)
