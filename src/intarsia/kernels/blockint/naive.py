"""The definition of kernels/native/blockint.c in torch, and the order of its codes."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32  # inputs that share a scale
BUNDLE = 16  # rows with codes that stand side by side
WORD = 4  # codes of a row that stand together


def bundled(codes: Tensor, bits: int) -> Tensor:
    """Reorder codes as the kernel reads them: the codes of 16 rows side by side.

    codes: (R, K, 32) uint8 below 2^bits, of R rows in K blocks of 32 inputs; R is a multiple of 16;
      bits: of a code, 4 or 8.
    Returns (R / 16, K, W, 16, 4) uint8: for each 16 rows and each block W words of 4 bytes a row.
      With 8 bits a byte is a code, and W = 8; with 4 bits it is two, and W = 4: columns 0 ... 15 in
      the low nibbles and 16 ... 31 in the high ones, as in a block of GGUF's Q4_0.
    """
    # Two codes of 4 bits share a byte.
    if bits == 4:
        codes = codes[..., :16] | codes[..., 16:] << 4
    words = codes.unflatten(-1, (-1, WORD)).unflatten(0, (-1, BUNDLE))  # (R / 16, 16, K, W, 4)
    return words.permute(0, 2, 3, 1, 4).contiguous()


def unbundled(codes: Tensor, bits: int) -> Tensor:
    """Return codes by row, the inverse of `bundled`: R rows in K blocks of 32 inputs.

    codes: (R / 16, K, W, 16, 4) uint8, W = 4 words of 4 bytes for 4 bits, 8 for 8; bits: of a code,
      4 or 8.  -> (R, K, 32) uint8.
    """
    # (R / 16, K, W, 16, 4) -> (R, K, 4 W), the rows of a bundle apart again.
    rows = codes.permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(2)
    return torch.cat([rows & 15, rows >> 4], -1) if bits == 4 else rows


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round x to int8 codes q = round(x / s), with a scale s = max |x| / 127 for each 32 inputs.

    x: (N, in).  -> q (N, K, 32) and s (N, K), both float32, in K = ceil(in / 32) blocks of inputs,
      with zeros behind the last input. A block with an infinite or NaN input gets q = 0, s = NaN.
    """
    blocks = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % BLOCK))
    blocks = blocks.unflatten(1, (-1, BLOCK))
    largest = blocks.abs().amax(2)
    # A block of zeros has no finite inverse: its codes are 0.
    inverse = 127 / largest
    usable = largest.isfinite() & inverse.isfinite()
    codes = (blocks * torch.where(usable, inverse, 0)[..., None]).round()
    codes = torch.where(usable[..., None], codes, 0)
    return codes, torch.where(largest.isfinite(), largest / 127, torch.nan)


def blockint(x: Tensor, codes: Tensor, scales: Tensor, rows: int, bits: int) -> Tensor:
    """Compute x W^T from int8 codes of x and stored codes of the weight W, block by block.

    y_br = sum_k s_bk d_rk sum_j q_bkj (c_rkj - 2^(bits-1)), for row b of x and row r of W; k is a
    block of 32 inputs, j a place in it; q, s: codes and scales of x, see `rounded`.
    x: (N, in); codes: c, in bundles of 16 rows, see `bundled`; scales: d, (R / 16, K, 16) float16,
      for R stored rows and K blocks; rows: of W, at most R, as the last bundle may be padded; bits:
      of a code, 4 or 8.  -> (N, rows) float32.
    """
    q, steps = rounded(x)
    # Codes are stored without a sign: the middle one stands for 0.
    weight = unbundled(codes, bits).float() - 2 ** (bits - 1)
    dots = torch.einsum("bkj,rkj->brk", q, weight)  # exact: below 2^24
    d = scales.float().transpose(1, 2).flatten(0, 1)  # (R, K)
    return (dots * d * steps[:, None]).sum(2)[:, :rows]
