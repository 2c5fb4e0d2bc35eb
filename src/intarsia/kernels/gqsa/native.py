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
    "bool integers) -> Tensor"
)
DTYPES = torch.float32, torch.int32, torch.uint16, torch.uint8, torch.bfloat16, torch.uint8
TYPES = (c_void_p, c_void_p, c_int64, c_int64, *[c_void_p] * 5, c_int64, c_int64, c_int, c_int)


def gqsa(
    x: Tensor,
    offsets: Tensor,
    columns: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    integers: bool = False,
) -> Tensor:
    """Compute x W^T, `naive.gqsa`, by the kernel where there is one; no gradient.

    x: (N, in), in a multiple of 16; offsets: (out + 1,), where each row's kept groups of 16 weights
      begin; columns: their places in the row; codes: 4 bits of each weight; scales, zeros: of each
      group; integers: round x to int8 first.  -> (N, out).
    Raises: ShapeError for groups outside x, rows that do not rise, tensors of other types or sizes.
    """
    check(x, offsets, columns, codes, scales, zeros)
    if load() is None:
        return naive(x, offsets, columns, codes, scales, zeros, integers)
    return _operator()(x, offsets, columns, codes, scales, zeros, integers)


def bound(parts: tuple[Tensor, ...], width: int, integers: bool, max_rows: int) -> Bound | None:
    """Return a callable x -> x W^T, with the stored weight W built in; None without a kernel.

    parts: of the kept groups of 16 weights: offsets of the rows, columns, codes, scales, zero
      points; width: W's inputs, whose last group may be shorter; integers: round x to int8;
      max_rows: the caller uses the result for at most so many rows x.
    """
    if not all(t.is_contiguous() for t in parts):
        return None
    rows, groups = len(parts[0]) - 1, len(parts[1])
    # An empty x has the padded width that the check needs.
    check(torch.empty(0, -(-width // 16) * 16), parts[0], *parts[1:])
    return Bound.of("gqsa", (rows, width), (groups, integers), parts, max_rows)


def check(x: Tensor, offsets: Tensor, *parts: Tensor) -> None:
    """Raise ShapeError for tensors that a kernel may not be given: it trusts their addresses.

    x: (N, in); offsets: (out + 1,), where each row's groups begin; parts: columns, codes, scales
      and zeros of the n groups of 16 weights that `GroupSparse` keeps. A group has a column, 8
      bytes of 4-bit codes, a scale and a 4-bit zero point, of which two share a byte.
    """
    count = len(parts[0])
    types = tuple(t.dtype for t in (x, offsets, *parts))
    sizes = [tuple(t.shape) for t in parts]
    fits = types == DTYPES and sizes == [(count,), (8 * count,), (count,), (-(-count // 2),)]
    if not (fits and x.dim() == 2 and x.shape[1] % 16 == 0 and offsets.dim() == 1):
        got = f"{count} columns, {sizes[1:]}, inputs {tuple(x.shape)}"
        want, fix = "8 bytes, a scale and a zero for each column", "Copy the file again."
        raise ShapeError("group-sparse weight", got=got, want=want, fix=fix)


@functools.cache
def _operator() -> Any:
    """Register the kernel as an operator of torch, once."""
    return operator(SCHEMA, _run, _shapes)


def _run(
    x: Tensor,
    offsets: Tensor,
    columns: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    integers: bool,
) -> Tensor:
    """Call the kernel for x (N, in) in float32.  -> (N, out).

    offsets: where each row's kept groups of 16 weights begin; columns, codes, scales, zeros: of
      each group; integers: round x to int8. Raises: ShapeError for groups outside x.
    """
    call = function("intarsia_gqsa", *TYPES)
    assert call is not None
    rows, groups = len(offsets) - 1, len(columns)
    parts = (offsets, columns, codes, scales, zeros)
    x, *parts = (t.contiguous() for t in (x, *parts))
    y = x.new_empty(len(x), rows)
    addresses = [t.data_ptr() for t in parts]
    # groups of a row
    across = x.shape[1] // 16
    threads = torch.get_num_threads()
    sizes = len(x), across
    fault = call(x.data_ptr(), y.data_ptr(), *sizes, *addresses, rows, groups, integers, threads)
    # The kernel returns the number of the first bad row, plus 1.
    if fault:
        want, fix = f"groups below {across}, rows one after the other", "Copy the file again."
        raise ShapeError("row of groups", got=f"row {fault - 1}", want=want, fix=fix)
    return y


def _shapes(x: Tensor, offsets: Tensor, *_: Any) -> Tensor:
    return x.new_empty(len(x), len(offsets) - 1)
