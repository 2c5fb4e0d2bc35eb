"""The definition of kernels/native/gqsa.c in torch, and the grid of its weights."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = torch.finfo(torch.bfloat16).tiny


def affine(groups: Tensor, bits: int, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """Return scale s and zero z of each group: s = (max - min) / (2^b - 1), z = round(-min / s).

    groups: (..., G) weights; bits: b; symmetric: z = 2^(b-1), s = max |w| / (z - 1/2), as
      compressed-tensors has it.  -> float32 (...), (...).
    0 lies between min and max, so that it has a code of its own and z is one of them; s is rounded
    to bfloat16 before z is chosen.
    """
    # 0 lies in every group's range, so that zero weights stay zero
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    largest = 2**bits - 1
    span = 2 * torch.maximum(-low, high) if symmetric else high - low
    scale = (span / largest).bfloat16().float()
    scale = scale.where(scale >= LEAST, 0.0)  # a scale so small that w / s may overflow becomes 0
    if symmetric:
        return scale, torch.full_like(scale, 2 ** (bits - 1))
    zero = (-low / scale.where(scale > 0, 1.0)).round().clamp(0, largest)
    return scale, zero.where(scale > 0, 0.0)


def codes_of(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Return the codes q = clamp(round(w / s) + z, 0, 2^b - 1) in float; z where s is 0.

    weight: w; scale, zero: s and z, broadcast against it; bits: b.
    """
    steps = (weight / scale.where(scale > 0, 1.0)).round().where(scale > 0, 0.0)
    return (steps + zero).clamp(0, 2**bits - 1)


def spread(groups: Tensor, offsets: Tensor, columns: Tensor, across: int) -> Tensor:
    """Put kept groups (K, r, G) at their places in blocks of r rows.  Returns (B r, across G).

    offsets: (B + 1,), where each block's groups begin; columns: (K,), their places in a row;
      across: groups of a row. All other weights are 0.
    """
    counts = offsets.long().diff()
    block = torch.arange(len(counts), device=groups.device).repeat_interleave(counts)
    dense = groups.new_zeros(len(counts), across, *groups.shape[1:])
    dense[block, columns.long()] = groups
    return dense.transpose(1, 2).flatten(2).flatten(0, 1)


def rounded(x: Tensor, group: int) -> Tensor:
    """Round x to int8 and back, with a scale t for each group: t round(x / t), t = max |x| / 127.

    x: (..., in); group: the number of inputs that share t, a divisor of `in`.  -> (..., in).
    """
    parts = x.unflatten(-1, (-1, group))
    step = parts.abs().amax(-1, keepdim=True) / 127
    codes = (parts / step.where(step > 0, 1.0)).round()
    return (codes * step).flatten(-2)


def gqsa(
    x: Tensor,
    offsets: Tensor,
    columns: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    integers: bool = False,
    rows: int = 1,
) -> Tensor:
    """Return y_r = sum_g s_g sum_j (q_gj - z_g) x_j over the kept groups g of row r.  (N, B rows).

    x: (N, 16 C) float32; offsets: (B + 1,) int32, where the groups of each block of `rows` rows
      begin; columns: (K,) uint16, the places of K groups; of each its rows one after the other:
      codes: q, (8 K rows,) uint8, the even weight in the low nibble; scales: s, (K rows,) bfloat16;
      zeros: z, (ceil(K rows / 2),) uint8 in nibbles. integers: x is rounded to int8 first, with a
      scale for each group.
    """
    pairs = codes.view(-1, 8)
    q = torch.stack([pairs & 15, pairs >> 4], -1).flatten(1).float()  # (K rows, 16)
    z = torch.stack([zeros & 15, zeros >> 4], -1).flatten()[: len(q)].float()
    groups = ((q - z[:, None]) * scales.float()[:, None]).view(-1, rows, 16)
    inputs = rounded(x, 16) if integers else x
    return inputs @ spread(groups, offsets, columns, x.shape[1] // 16).T
