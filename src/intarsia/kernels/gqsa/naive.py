"""The definition of kernels/native/gqsa.c in torch, and the grid of its weights."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = torch.finfo(torch.bfloat16).tiny


def affine(groups: Tensor, bits: int, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """Return scale s and zero point z of each group of weights, for codes of b bits.

    s = (max - min) / (2^b - 1) and z = round(-min / s); a code q stands for s (q - z).
    groups: (..., G), G weights in a group; bits: b; symmetric: z = 2^(b-1), s = max |w| / (z -
      1/2), as compressed-tensors has it. Returns s and z, float32 (...) each.
    min and max are taken with 0, so that the weight 0 has a code; s is rounded to bfloat16 before z
    is chosen.
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
    """Return the codes of weights, q = clamp(round(w / s) + z, 0, 2^b - 1), as floats.

    weight: w; scale, zero: s and z, of shapes that broadcast to w's, see `affine`; bits: b. Where s
      is 0, q is z.
    """
    steps = (weight / scale.where(scale > 0, 1.0)).round().where(scale > 0, 0.0)
    return (steps + zero).clamp(0, 2**bits - 1)


def spread(groups: Tensor, offsets: Tensor, columns: Tensor, across: int) -> Tensor:
    """Put kept groups of weights at their places in a dense matrix, which is 0 elsewhere.

    A block is r consecutive rows; it keeps some groups of G consecutive columns. groups: (K, r, G),
    the weights of the K kept groups, block by block; offsets: (B + 1,), where each of B blocks
    begins in `groups`; columns: (K,), the number of each group along the row, 0 = the first G
    columns. Returns the weights, (B r, across G).
    """
    counts = offsets.long().diff()
    block = torch.arange(len(counts), device=groups.device).repeat_interleave(counts)
    dense = groups.new_zeros(len(counts), across, *groups.shape[1:])
    dense[block, columns.long()] = groups
    return dense.transpose(1, 2).flatten(2).flatten(0, 1)


def rounded(x: Tensor, group: int) -> Tensor:
    """Round x to int8 and back: t round(x / t), with a scale t = max |x| / 127 for each group.

    x: (..., in); group: the number of inputs that share a scale, a divisor of `in`.  -> (..., in).
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
    """Compute x W^T from the kept groups of W: 16 weights of a row, with 4-bit codes, one scale.

    y_r = sum_g s_g sum_j (q_gj - z_g) x_j over the kept groups g of row r. Blocks of `rows` rows
    keep groups of the same columns: there are B blocks and K groups of them.
    x: (N, 16 C) float32, C groups in a row; offsets: (B + 1,) int32, where each block begins in
      `columns`; columns: (K,) uint16, the number of each group along its row. For each group, and
      for its rows one after the other: codes: q, (8 K rows,) uint8, 16 codes in 8 bytes, the even
      one in the low nibble; scales: s, (K rows,) bfloat16; zeros: z, (ceil(K rows / 2),) uint8, two
      in a byte. integers: round x to int8 first, with a scale for each group. Returns (N, B rows).
    """
    pairs = codes.view(-1, 8)
    q = torch.stack([pairs & 15, pairs >> 4], -1).flatten(1).float()  # (K rows, 16)
    z = torch.stack([zeros & 15, zeros >> 4], -1).flatten()[: len(q)].float()
    groups = ((q - z[:, None]) * scales.float()[:, None]).view(-1, rows, 16)
    inputs = rounded(x, 16) if integers else x
    return inputs @ spread(groups, offsets, columns, x.shape[1] // 16).T
