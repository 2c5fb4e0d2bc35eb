"""The kernel in C, as an operator of torch."""

from __future__ import annotations

import functools
from ctypes import c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ShapeError
from ..native import Bound, function, load, operator
from .dictionary import WORDS, Dictionary
from .naive import ternary as naive

SCHEMA = "ternary(Tensor x, Tensor codes, Tensor offsets, Tensor levels, Tensor table) -> Tensor"
TYPES = (c_void_p, c_void_p, c_int64, c_int64, *[c_void_p] * 4, c_int64, c_int64, c_int)
BEHIND = 32  # numbers behind x that the kernel may read


def ternary(x: Tensor, codes: Tensor, offsets: Tensor, levels: Tensor, words: Dictionary) -> Tensor:
    """Compute x W^T, `naive.ternary`, by the kernel where there is one; no gradient.

    x: (N, in) float32; codes: (K,) uint16, numbers of words, which are runs of three-valued
      weights, row by row; offsets: (out + 1,), where each row begins in `codes`; levels: (out, 2),
      the lowest and highest weight of each row.  -> (N, out). An infinite input may give NaN where
      a dense product gives infinity: 0 times it is added.
    Raises: ShapeError for words that do not fill their row, and tensors of other types or sizes.
    """
    check(x, codes, offsets, levels)
    if load() is None:
        return naive(x, codes, offsets, levels, words)
    return _operator()(x, codes, offsets, levels, words.table)


def bound(parts: tuple[Tensor, ...], width: int, words: Dictionary, max_rows: int) -> Bound | None:
    """Return a callable x -> x W^T, with the stored weight W built in; None without a kernel.

    parts: (codes, offsets, levels) of W, as `ternary` takes them; width: number of W's inputs;
      max_rows: rows of x up to which the result is used.
    """
    if not all(t.is_contiguous() for t in parts):
        return None
    codes, offsets, levels = parts
    # Words are of pairs of digits: an odd width is padded by one.
    check(torch.empty(0, width + width % 2), codes, offsets, levels)
    tensors = (codes, offsets, words.table, levels)
    return Bound.of("ternary", (len(levels), width), (len(codes),), tensors, max_rows)


def check(x: Tensor, codes: Tensor, offsets: Tensor, levels: Tensor) -> None:
    """Raise ShapeError for tensors that a kernel may not be given: it trusts their addresses.

    x: (N, in) float32; codes: (K,) uint16, numbers of words; offsets: (out + 1,) int64, where each
      row begins in `codes`; levels: (out, 2) bfloat16, lowest and highest weight of each row.
    """
    rows = len(levels)
    types = (t.dtype for t in (x, codes, offsets, levels))
    fits = tuple(types) == (torch.float32, torch.uint16, torch.int64, torch.bfloat16)
    fits = fits and codes.dim() == 1 and levels.shape == (rows, 2) and offsets.shape == (rows + 1,)
    if not fits:
        got = f"{len(codes)} codes, {tuple(offsets.shape)} offsets, {tuple(levels.shape)} levels"
        want, fix = "a row's codes, their ends, and two levels", "Copy the file again."
        raise ShapeError("ternary weight", got=got, want=want, fix=fix)


@functools.cache
def _operator() -> Any:
    return operator(SCHEMA, _run, _shapes)


def _run(x: Tensor, codes: Tensor, offsets: Tensor, levels: Tensor, table: Tensor) -> Tensor:
    """Call the kernel for x (N, in) in float32.  -> (N, out)."""
    call = function("intarsia_ternary", *TYPES)
    assert call is not None and table.shape == (WORDS, 2)
    # the kernel reads vectors, up to BEHIND numbers after the last input
    x, codes, offsets, levels, table = (
        t.contiguous()
        for t in (torch.nn.functional.pad(x, (0, BEHIND)), codes, offsets, levels, table)
    )
    y = x.new_empty(len(x), len(levels))
    fault = call(
        x.data_ptr(),
        y.data_ptr(),
        len(x),
        x.shape[1] - BEHIND,
        codes.data_ptr(),
        offsets.data_ptr(),
        table.data_ptr(),
        levels.data_ptr(),
        len(levels),
        len(codes),
        torch.get_num_threads(),
    )
    # The kernel returns the number of the first bad row, plus 1.
    if fault:
        want, fix = "words that fill it", "Copy the file again."
        raise ShapeError(f"row {fault - 1}", got="words that do not", want=want, fix=fix)
    return y


def _shapes(x: Tensor, codes: Tensor, offsets: Tensor, levels: Tensor, table: Tensor) -> Tensor:
    """Return an empty tensor of the result's shape, (N, out), for tracing without data."""
    return x.new_empty(len(x), len(levels))
