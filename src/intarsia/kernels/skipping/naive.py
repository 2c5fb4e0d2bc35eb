"""The definition of kernels/native/skipping.c in torch, and the order of its codes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blockint.naive import BLOCK, rounded

LONG = 128  # rows of a tile
SHORT = 64  # of the last one; any number of rows is filled up to a multiple of it
LANE = 16  # bytes in which processors interleave columns
OFFSET = 8  # the code of 0


def columnwise(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Reorder codes and scales as the kernel reads them: the rows of a column side by side.

    codes: (R, K, 32) uint8 below 16, of R rows in K blocks of 32 inputs; R is a multiple of 64;
      scales: (R, K) float16.
    Returns (16 R K,) uint8, two codes a byte, and (R K,) float16: tiles of 128 rows, the last of an
      odd number of 64; of a tile all blocks, of a block all columns, of a column its rows. Byte
      16 l + 4 t + e of a column of L = 4 lanes, or 2 in a short tile, has row 4 L t + 4 l + e of
      the tile in the low nibble, and the row 16 L behind it in the high one.
    """
    nibbles = [
        # (tiles, 2, 4, L, 4, K, 32) -> (tiles, K, 32, 2, L, 4, 4)
        part.unflatten(0, (-1, 2, 4, lanes, 4)).permute(0, 5, 6, 1, 3, 2, 4)
        for part, lanes in _tiles(codes)
    ]
    packed = [(n[:, :, :, 0] | n[:, :, :, 1] << 4).flatten() for n in nibbles]
    steps = [s.unflatten(0, (-1, 32 * lanes)).transpose(1, 2) for s, lanes in _tiles(scales)]
    return torch.cat(packed), torch.cat([s.flatten() for s in steps])


def rowwise(codes: Tensor, scales: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Return codes (R, K, 32) and scales (R, K) by row, the inverse of `columnwise`; blocks: K."""
    rows = [
        torch.stack([part & 15, part >> 4], 3)  # (tiles, K, 32, 2, L, 4, 4)
        .permute(0, 3, 5, 4, 6, 1, 2)
        .flatten(0, 4)
        for part in (
            part.view(-1, blocks, BLOCK, lanes, 4, 4)
            for part, lanes in _tiles(codes, BLOCK // 2 * blocks)
        )
    ]
    steps = [
        part.view(-1, blocks, 32 * lanes).transpose(1, 2).flatten(0, 1)
        for part, lanes in _tiles(scales, blocks)
    ]
    return torch.cat(rows), torch.cat(steps)


def kept(x: Tensor, limit: Tensor) -> Tensor:
    """Return x with 0 in place of |x| <= limit; NaN stays.  limit: (1,)."""
    return x.masked_fill(x.abs() <= limit, 0)


def skipping(x: Tensor, codes: Tensor, scales: Tensor, limit: Tensor, rows: int) -> Tensor:
    """Compute x W^T over the columns where |x| > t, from int8 codes of x and codes of W.

    y_br = sum_k s_bk d_rk sum_{j: |x_bkj| > t} q_bkj (c_rkj - 8), for row b of x and row r of W; k
    is a block of 32 inputs, j a place in it; q, s: codes and scales of what is kept of x, see
    `blockint.rounded`.
    x: (N, in); codes: c, and scales: d, see `columnwise`, of R rows in K blocks; limit: t, (1,);
      rows: of W, at most R.  -> (N, rows) float32.
    """
    q, steps = rounded(kept(x, limit))
    by_row, by_block = rowwise(codes, scales, q.shape[1])
    dots = torch.einsum("bkj,rkj->brk", q, by_row.float() - OFFSET)  # exact: below 2^24
    return (dots * by_block.float() * steps[:, None]).sum(2)[:, :rows]


def _tiles(rows: Tensor, each: int = 1) -> list[tuple[Tensor, int]]:
    """Cut rows into those of long tiles, of four lanes, and the short one behind, of two."""
    # each: numbers of a row
    long = len(rows) // (LONG * each) * LONG * each
    lanes = LONG // 2 // LANE
    return [(rows[:long], lanes), (rows[long:], lanes // 2)]
