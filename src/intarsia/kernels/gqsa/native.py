"""The kernel in C, as an operator of torch."""

from __future__ import annotations

import functools
from ctypes import c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ShapeError
from ..native import Bound, function, load, operator
from .naive import gqsa as naive

SCHEMA = (
    "gqsa(Tensor x, Tensor offsets, Tensor columns, Tensor codes, Tensor scales, Tensor zeros, "
    "bool integers, int rows) -> Tensor"
)
DTYPES = torch.float32, torch.int32, torch.uint16, torch.uint8, torch.bfloat16, torch.uint8
BLOCKS = (1, 4, 8)  # rows that share their groups
TYPES = (c_void_p, c_void_p, c_int64, c_int64, *[c_void_p] * 5, c_int64, c_int64, *[c_int] * 3)


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
    """Compute x W^T, `naive.gqsa`, by the kernel where there is one; no gradient.

    x: (N, in) float32; offsets, columns, codes, scales, zeros: W's kept groups of 16 weights, as
      `GroupSparse` stores them and `naive.gqsa` describes; integers: round x to int8 first; rows:
      how many rows of W share their groups, 1, 4 or 8.  -> (N, out).
    Raises: ShapeError for groups outside x, rows that do not rise, tensors of other types or sizes.
    """
    check(x, rows, offsets, columns, codes, scales, zeros)
    if load() is None:
        return naive(x, offsets, columns, codes, scales, zeros, integers, rows)
    return _operator()(x, offsets, columns, codes, scales, zeros, integers, rows)


def bound(
    parts: tuple[Tensor, ...], sides: tuple[int, int], rows: int, integers: bool, max_rows: int
) -> Bound | None:
    """Return `gqsa` of one stored weight as a function of x; None without a kernel.

    parts: offsets, columns, codes, scales and zeros of the weight; sides: (out, in) of the weight
      (its last group and block may be shorter); rows: how many rows of the weight share their
      groups; integers: round x to int8; max_rows: the caller uses it for at most so many rows of x.
    """
    if not all(t.is_contiguous() for t in parts):
        return None
    check(torch.empty(0, -(-sides[1] // 16) * 16), rows, parts[0], *parts[1:])
    return Bound.of("gqsa", sides, (len(parts[1]), integers, rows), parts, max_rows)


def check(x: Tensor, rows: int, offsets: Tensor, *parts: Tensor) -> None:
    """Raise ShapeError for tensors that a kernel may not be given: it trusts their addresses.

    x: (N, in); rows: how many rows of the weight share their groups, a block; offsets: (blocks +
      1,), where each block's groups begin; parts: columns, codes, scales and zeros of the kept
      groups of 16 weights. A group has a column, and for each of its rows 8 bytes of 4-bit codes, a
      scale, and a 4-bit zero point (two of them share a byte).
    """
    count = len(parts[0])
    types = tuple(t.dtype for t in (x, offsets, *parts))
    sizes = [tuple(t.shape) for t in parts]
    pieces = count * rows
    fits = types == DTYPES and sizes == [(count,), (8 * pieces,), (pieces,), (-(-pieces // 2),)]
    fits = fits and rows in BLOCKS
    if not (fits and x.dim() == 2 and x.shape[1] % 16 == 0 and offsets.dim() == 1):
        got = f"{count} columns, {sizes[1:]}, inputs {tuple(x.shape)}"
        want, fix = "8 bytes, a scale and a zero for each column", "Copy the file again."
        raise ShapeError("group-sparse weight", got=got, want=want, fix=fix)


@functools.cache
def _operator() -> Any:
    return operator(SCHEMA, _run, _shapes)


def _run(
    x: Tensor,
    offsets: Tensor,
    columns: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    integers: bool,
    rows: int,
) -> Tensor:
    """Call the kernel for x (N, in) in float32.  -> (N, out)."""
    call = function("intarsia_gqsa", *TYPES)
    assert call is not None
    outputs, groups = (len(offsets) - 1) * rows, len(columns)
    parts = (offsets, columns, codes, scales, zeros)
    x, *parts = (t.contiguous() for t in (x, *parts))
    y = x.new_empty(len(x), outputs)
    addresses = [t.data_ptr() for t in parts]
    # groups of a row
    across = x.shape[1] // 16
    threads = torch.get_num_threads()
    sizes, settings = (len(x), across), (outputs, groups, rows, integers, threads)
    fault = call(x.data_ptr(), y.data_ptr(), *sizes, *addresses, *settings)
    if fault:
        want, fix = f"groups below {across}, rows one after the other", "Copy the file again."
        raise ShapeError("row of groups", got=f"row {fault - 1}", want=want, fix=fix)
    return y


def _shapes(x: Tensor, offsets: Tensor, *rest: Any) -> Tensor:
    """Return an empty tensor of the result's shape, (N, out), for tracing without data."""
    rows = rest[-1]
    return x.new_empty(len(x), (len(offsets) - 1) * rows)
