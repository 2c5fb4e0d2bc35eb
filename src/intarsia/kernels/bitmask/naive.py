"""The definition, for tests: kept weights alone are multiplied."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64  # inputs that share a scale when they are rounded to int8


def bitmask_linear(x: Tensor, bits: Tensor, values: Tensor, scales: Tensor | None = None) -> Tensor:
    """Compute x W^T from the kept weights of W; x is rounded first if they are int8.

    x: (batch, in), rounded as `rounded` does; bits: (out, ceil(in / 8)) uint8, a bit for each
      weight, the lowest one first, 1 = kept; values: (kept,), the kept weights, row by row; scales:
      (out,) float32, a factor for each row, where `values` are int8; else None.  -> (batch, out).
    """
    width = x.shape[1]
    # one bool for each bit, without those behind the last column
    mask = (bits.long()[..., None] >> torch.arange(8) & 1).flatten(1)[:, :width].bool()
    row, column = mask.nonzero().unbind(1)
    if scales is None:
        y = x.new_zeros(len(x), len(bits))
        return y.index_add(1, row, x[:, column] * values.to(x.dtype))
    codes, steps = rounded(x)  # (batch, in) int64, (batch, blocks)
    blocks = steps.shape[1]
    # exact integer dot products of each row's blocks, then their scales
    dots = codes.new_zeros(len(x), len(bits) * blocks)
    dots.index_add_(1, row * blocks + column // BLOCK, codes[:, column] * values.long())
    return (dots.view(len(x), len(bits), blocks) * steps[:, None]).sum(2) * scales


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round x to int8 steps: q = round(x / s), with s = max |x| / 127 for each block of 64 inputs.

    A block with an infinite or NaN input gets q = 0 and s = NaN; one of zeros q = 0 and s = 0.
    x: (batch, in). Returns q (batch, in) int64 and s (batch, ceil(in / 64)) float32.
    """
    padded = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    steps = padded.abs().amax(2) / 127
    usable = steps.isfinite() & (steps > 0)
    codes = (padded / torch.where(usable, steps, 1)[..., None]).round()
    codes = torch.where(usable[..., None], codes, 0).long().flatten(1)[:, : x.shape[1]]
    return codes, torch.where(steps.isfinite(), steps, torch.nan)
