"""The kernel of bitmask.c: its signature, its operator of torch, its gradient."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ShapeError
from .. import native

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
INPUTS = (torch.float32, torch.bfloat16, torch.float16)
P, N, I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int  # noqa: E741
LINEAR = (I, P, P, P, P, P, P, N, N, N, N, I)
DECODE = (I, P, P, P, P, P, N, N, N, N, N, I)
TILE = 2**19  # numbers that are decoded at a time: 2 MiB


def runs(x: Tensor, values: Tensor) -> bool:
    """Return True if this machine has a kernel for inputs x and kept weights of these types."""
    supported = values.dtype in KINDS and x.dtype in INPUTS
    return supported and x.device.type == "cpu" == values.device.type and native.load() is not None


def linear(
    x: Tensor, bits: Tensor, values: Tensor, offsets: Tensor, scales: Tensor | None = None
) -> Tensor:
    """Compute `naive.bitmask_linear`, x W^T, by the kernel, in x's dtype, with a gradient for x.

    x: (..., in); bits: (out, ceil(in / 8)) uint8, 1 = the weight is kept; values: (kept,), row by
      row; offsets: (out,) int64, where each row's values begin; scales: (out,) float32, a factor
      for each row, where values are int8, else None.  -> (..., out).
    Raises: ShapeError where the stored tensors do not fit together.
    """
    # The kernel takes a matrix: all axes but the last are its rows.
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    if torch.is_grad_enabled() and x.requires_grad:
        y: Any = _BitmaskLinear.apply(rows, bits, values, offsets, scales)
    else:
        y = _product(rows, bits, values, offsets, scales)
    return y.view(*x.shape[:-1], len(bits))


def bound(
    bits: Tensor,
    values: Tensor,
    offsets: Tensor,
    scales: Tensor | None,
    width: int,
    max_rows: int,
) -> native.Bound | None:
    """Return a callable x -> x W^T, with the stored weight W built in; None without a kernel.

    The tensors of W: see `check`. width: W's inputs; max_rows: rows of x up to which the result is
    used, since for more rows it is faster to decode W.
    """
    if values.dtype not in KINDS:
        return None
    check(bits, values, offsets, scales, width)
    # `native.Bound` reads numbers and tensors in the order that products.c expects.
    settings, tensors = (KINDS[values.dtype], len(values)), (bits, values, offsets, scales)
    return native.Bound.of("bitmask", (len(bits), width), settings, tensors, max_rows)


def linear_many(
    x: Tensor, bits: Tensor, values: Tensor, offsets: Tensor, scales: Tensor | None = None
) -> Tensor:
    """Compute x W^T for many rows of x (..., in), decoding some rows of the weight at a time.

    The tensors of W: see `check`. A tile of decoded rows stays in the cache until it is multiplied,
    and the dense weight never exists as a whole. There is no gradient.
    """
    check(bits, values, offsets, scales, x.shape[-1])
    y = x.new_empty(*x.shape[:-1], len(bits))
    # As many rows as make up TILE numbers, one at least.
    tile = torch.empty(max(1, TILE // max(1, x.shape[-1])), x.shape[-1], dtype=dense_type(values))
    for first in range(0, len(bits), len(tile)):
        rows = tile[: len(bits) - first]
        _decode(rows, first, bits, values, offsets, scales)
        # one multiplication for each tile, with torch's own product
        y[..., first : first + len(rows)] = torch.nn.functional.linear(x, rows.to(x.dtype))
    return y


def decode(
    bits: Tensor, values: Tensor, offsets: Tensor, scales: Tensor | None, width: int
) -> Tensor:
    """Return the dense weight (out, in): float32, or bfloat16 if the values are.

    The stored tensors: see `check`.
    """
    check(bits, values, offsets, scales, width)
    out = torch.empty(len(bits), width, dtype=dense_type(values))
    _decode(out, 0, bits, values, offsets, scales)
    return out


def dense_type(values: Tensor) -> torch.dtype:
    """Return the dtype that values are decoded to."""
    return torch.bfloat16 if values.dtype == torch.bfloat16 else torch.float32


def _decode(
    out: Tensor, first: int, bits: Tensor, values: Tensor, offsets: Tensor, scales: Tensor | None
) -> None:
    """Decode rows `first`, `first` + 1, ... of a stored weight W into a tensor (rows, in)."""
    kernel = native.function("bitmask_decode", *DECODE)
    # Callers have asked `runs`, or built the weight with a kernel.
    assert kernel is not None
    fault = kernel(
        KINDS[values.dtype],
        out.data_ptr(),
        *_pointers(bits, values, offsets, scales),
        len(values),
        len(bits),
        out.shape[1],
        first,
        len(out),
        torch.get_num_threads(),
    )
    native.refuse(fault)


def check(bits: Tensor, values: Tensor, offsets: Tensor, scales: Tensor | None, width: int) -> None:
    """Raise ShapeError for tensors that a kernel may not be given: it trusts their addresses.

    bits: which weights are kept, (out, ceil(in / 8)) uint8; values: (kept,), the kept weights, row
      by row; offsets: (out,) int64, where each row's values begin; scales: (out,) float32, a factor
      for each row of int8 values, else None; width: the number of inputs, `in`.
    """
    rows = len(bits)
    fits = bits.shape == (rows, -(-width // 8)) and offsets.shape == (rows,) and values.dim() == 1
    fits = fits and bits.dtype == torch.uint8 and offsets.dtype == torch.int64
    fits = fits and all(t.is_contiguous() for t in (bits, values, offsets))
    # Only int8 values have scales, one for each row.
    if values.dtype == torch.int8:
        fits = fits and scales is not None and scales.shape == (rows,)
        fits = fits and scales is not None and scales.dtype == torch.float32
    if not fits:
        got = f"bits {tuple(bits.shape)}, offsets {tuple(offsets.shape)}"
        want = (
            f"bits {(rows, -(-width // 8))}, offsets {(rows,)}, contiguous, a scale a row of int8"
        )
        raise ShapeError("bitmask", got=got, want=want, fix="Decode with the encoding's own shape.")


def _pointers(*tensors: Tensor | None) -> tuple[int | None, ...]:
    """Return the addresses of tensors, None for None."""
    return tuple(None if t is None else t.data_ptr() for t in tensors)


@functools.cache
def _operator() -> Any:
    schema = "bitmask_linear(Tensor x, Tensor bits, Tensor values, Tensor offsets, Tensor? scales)"
    return native.operator(f"{schema} -> Tensor", _run, _shape)


def _run(x: Tensor, bits: Tensor, values: Tensor, offsets: Tensor, scales: Tensor | None) -> Tensor:
    """Call the kernel for x (N, in) in float32.  -> (N, out)."""
    kernel = native.function("bitmask_linear", *LINEAR)
    assert kernel is not None
    check(bits, values, offsets, scales, x.shape[1])
    # The kernel reads and writes rows that lie one after the other.
    x, y = x.contiguous(), x.new_empty(len(x), len(bits))
    fault = kernel(
        KINDS[values.dtype],
        x.data_ptr(),
        y.data_ptr(),
        *_pointers(bits, values, offsets, scales),
        len(values),
        len(bits),
        x.shape[1],
        len(x),
        torch.get_num_threads(),
    )
    if fault:
        native.refuse(fault)
    return y


def _shape(
    x: Tensor, bits: Tensor, values: Tensor, offsets: Tensor, scales: Tensor | None
) -> Tensor:
    """Return an empty tensor of the result's shape, (N, out), for tracing without data."""
    return x.new_empty(x.shape[0], bits.shape[0])


def _product(x: Tensor, *stored: Tensor | None) -> Tensor:
    """Compute x W^T by torch's operator, in float32; return it in x's dtype, (N, out)."""
    # x: (N, in); stored: bits, values, offsets and scales of W, as `check` describes them
    y = _operator()(x.float(), *stored)
    return y if y.dtype == x.dtype else y.to(x.dtype)


class _BitmaskLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bits: Tensor, values: Tensor, offsets: Tensor, scales: Tensor | None
    ) -> Tensor:
        """Compute the product x W^T, (N, out), and keep the stored weight for the backward."""
        ctx.stored, ctx.width = (bits, values, offsets, scales), x.shape[1]
        return _product(x, bits, values, offsets, scales)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Return the gradient of x, dy W, (N, in), and None for each stored tensor."""
        bits, values, offsets, scales = ctx.stored
        # x, which the kernel rounds where values are int8, has the gradient of unrounded inputs
        weight = decode(bits, values, offsets, scales, ctx.width)
        return grads[0] @ weight.to(grads[0].dtype), None, None, None, None
