"""The kernel of skipping.c: the checks before it, and its call."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.errors import ShapeError
from .. import native
from ..blockint.naive import BLOCK
from .naive import HALF

FEW = 4  # rows of x: each reads its own columns


def bound(
    codes: Tensor, scales: Tensor, limit: Tensor, shape: tuple[int, int]
) -> native.Bound | None:
    """Return a callable x -> x W^T over |x| > limit, with W built in; None without a kernel.

    codes, scales, limit: as `check` describes them; shape: (out, in) of the weight.
    """
    check(codes, scales, limit, shape)
    return native.Bound.of("skipping", shape, (), (codes, scales, limit), FEW)


def check(codes: Tensor, scales: Tensor, limit: Tensor, shape: tuple[int, int]) -> None:
    """Raise ShapeError for tensors that a kernel may not be given: it trusts their addresses.

    The weight is stored in K blocks of 32 inputs, its rows filled up to R, a multiple of 64.
    codes: (16 R K,) uint8, scales: (R K,) float16, by column, see `naive.columnwise`; limit: (1,)
      float32, inputs of at most this size are left out; shape: (out, in) of the weight.
    """
    rows, blocks = -(-shape[0] // HALF) * HALF, -(-shape[1] // BLOCK)
    stored = {
        "codes": (codes, (rows * blocks * BLOCK // 2,), torch.uint8),
        "scales": (scales, (rows * blocks,), torch.float16),
        "limit": (limit, (1,), torch.float32),
    }
    for name, (tensor, size, dtype) in stored.items():
        if tensor.shape != size or tensor.dtype != dtype or not tensor.is_contiguous():
            got, want = f"{tuple(tensor.shape)} {tensor.dtype}", f"{size} {dtype}, contiguous"
            fix = "Decode with the shape of the encoding."
            raise ShapeError(f"{name} by column", got=got, want=want, fix=fix)
