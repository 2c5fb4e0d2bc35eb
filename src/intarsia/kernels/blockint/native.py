"""The kernel of blockint.c: its signature and its operator of torch."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ShapeError
from .. import native
from .naive import BLOCK, BUNDLE, WORD

INPUTS = (torch.float32, torch.bfloat16, torch.float16)
P, N, I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int  # noqa: E741
LINEAR = (P, P, N, P, P, N, N, I, I)


def runs(x: Tensor) -> bool:
    """Return True if this machine has a kernel for inputs of this type."""
    return x.dtype in INPUTS and x.device.type == "cpu" and native.load() is not None


def blockint(x: Tensor, codes: Tensor, scales: Tensor, rows: int, bits: int) -> Tensor:
    """Compute x W^T by the kernel, in x's dtype, without a gradient.

    x: (..., in); codes, scales: W rounded, as `check` describes them; bits: of a code, 4 or 8.  ->
      (..., rows). Raises: ShapeError for stored tensors that do not fit x.
    """
    # The kernel takes a float32 matrix.
    flat = x.reshape(x.shape[:-1].numel(), x.shape[-1]).float()
    y = _operator()(flat, codes, scales, rows, bits)
    return y.to(x.dtype).view(*x.shape[:-1], rows)


def bound(codes: Tensor, scales: Tensor, shape: tuple[int, int], bits: int) -> native.Bound | None:
    """Return a callable x -> x W^T, with the stored weight W built in; None without a kernel.

    codes, scales: W's, see `check`; shape: (out, in) of W; bits: of a code, 4 or 8.
    """
    check(codes, scales, shape, bits)
    return native.Bound.of("blockint", shape, (bits,), (codes, scales), native.MANY)


def check(codes: Tensor, scales: Tensor, shape: tuple[int, int], bits: int) -> None:
    """Raise ShapeError for tensors that a kernel may not be given: it trusts their addresses.

    The weight is stored in B bundles of 16 rows and K blocks of 32 inputs.
    codes: (B, K, bits, 16, 4) uint8, the integers of 16 rows side by side, see `naive.bundled`;
      scales: (B, K, 16) float16, one for each row and block; shape: (out, in) of the weight; bits:
      of a code, 4 or 8.
    """
    # The last bundle of rows and the last block of inputs may be padded.
    bundles, blocks = -(-shape[0] // BUNDLE), -(-shape[1] // BLOCK)
    fits = codes.shape == (bundles, blocks, bits, BUNDLE, WORD) and codes.dtype == torch.uint8
    fits = fits and scales.shape == (bundles, blocks, BUNDLE) and scales.dtype == torch.float16
    if not fits or not codes.is_contiguous() or not scales.is_contiguous():
        got = f"codes {tuple(codes.shape)}, scales {tuple(scales.shape)}"
        want = f"{(bundles, blocks, bits, BUNDLE, WORD)} uint8 and {(bundles, blocks, BUNDLE)} half"
        fix = "Decode with the format and the shape of the encoding."
        raise ShapeError("blocks of codes", got=got, want=want, fix=fix)


@functools.cache
def _operator() -> Any:
    schema = "blockint(Tensor x, Tensor codes, Tensor scales, int rows, int bits) -> Tensor"
    return native.operator(schema, _run, lambda x, c, s, rows, bits: x.new_empty(len(x), rows))


def _run(x: Tensor, codes: Tensor, scales: Tensor, rows: int, bits: int) -> Tensor:
    """Call the kernel for x (N, in) in float32.  -> (N, rows)."""
    kernel = native.function("intarsia_blockint", *LINEAR)
    assert kernel is not None
    shape = rows, x.shape[1]
    check(codes, scales, shape, bits)
    x, y = x.contiguous(), x.new_empty(len(x), rows)
    places = codes.data_ptr(), scales.data_ptr()
    threads = torch.get_num_threads()
    if fault := kernel(x.data_ptr(), y.data_ptr(), len(x), *places, *shape, bits, threads):
        native.refuse(fault)
    return y
