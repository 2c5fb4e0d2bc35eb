"""The definition of kernels/native/skipping.c in torch, and the order of its codes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blockint.naive import BLOCK, rounded

TILE = 512  # rows with columns that stand together
HALF = 64  # rows of the shortest line; any number of rows is filled up to a multiple of it
LANE = 16  # bytes in which processors interleave columns
OFFSET = 8  # the code of 0


def columnwise(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Reorder codes and scales as the kernel reads them: the rows of a column side by side.

    codes: (R, K, 32) uint8 below 16, of R rows in K blocks of 32 inputs; R is a multiple of 64;
      scales: (R, K) float16.
    Returns (16 R K,) uint8, two codes a byte, and (R K,) float16: tiles of 512 rows, and of fewer
      at the end; of a tile all blocks, of a block all columns, of a column its rows, in lines of 64
      bytes for 128 rows and one of 32 for the last 64 of an odd number. Byte 16 l + 4 t + e of a
      line of L lanes, 4 or 2, has row 4 L t + 4 l + e in the low nibble, and the row 16 L behind it
      in the high one.
    """
    lines = [
        # (K, 32, lines, 2, 4, L, 4) -> (K, 32, lines, 2, L, 4, 4)
        part.unflatten(2, (-1, 2, 4, lanes, 4)).transpose(4, 5).flatten(4)
        for part, lanes in _lines(codes.permute(1, 2, 0), HALF)
    ]
    columns = torch.cat([(n[:, :, :, 0] | n[:, :, :, 1] << 4).flatten(2) for n in lines], 2)
    return _tiled(columns, TILE // 2), _tiled(scales.T[:, None], TILE)


def rowwise(codes: Tensor, scales: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Return codes (R, K, 32) and scales (R, K) by row, the inverse of `columnwise`; blocks: K."""
    columns = [
        torch.stack([part & 15, part >> 4], 2)  # (K, 32, 2, lines 16 L)
        .unflatten(3, (-1, lanes, 4, 4))
        .permute(0, 1, 3, 2, 5, 4, 6)
        .flatten(2)
        for part, lanes in _lines(_untiled(codes, blocks, BLOCK, TILE // 2), HALF // 2)
    ]
    by_row = torch.cat(columns, 2).permute(2, 0, 1)
    return by_row, _untiled(scales, blocks, 1, TILE)[:, 0].T


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


def _lines(columns: Tensor, half: int) -> list[tuple[Tensor, int]]:
    """Cut columns into their long lines, of four lanes, and the short one behind, of two."""
    # half: numbers of a column in a short line
    long = columns.shape[2] // (2 * half) * 2 * half
    lanes = HALF // 2 // LANE
    return [(columns[:, :, :long], 2 * lanes), (columns[:, :, long:], lanes)]


def _tiled(columns: Tensor, width: int) -> Tensor:
    """Lay (K, C, n) numbers as tiles (n / width, K, C, width), the rest (K, C, n % width) behind."""
    long = columns.shape[2] // width * width
    tiles = columns[:, :, :long].unflatten(2, (-1, width)).permute(2, 0, 1, 3)
    return torch.cat([tiles.flatten(), columns[:, :, long:].flatten()])


def _untiled(flat: Tensor, blocks: int, columns: int, width: int) -> Tensor:
    """Return (K, C, n) numbers, the inverse of `_tiled`."""
    tile = blocks * columns * width
    long = len(flat) // tile * tile
    tiles = flat[:long].view(-1, blocks, columns, width).permute(1, 2, 0, 3).flatten(2)
    return torch.cat([tiles, flat[long:].view(blocks, columns, -1)], 2)
