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
DECODE = (I, P, P, P, P, P, N, N, N, I)


def runs(x: Tensor, values: Tensor) -> bool:
    """Whether there is a kernel for inputs and values of these types, here."""
    known = values.dtype in KINDS and x.dtype in INPUTS
    return known and x.device.type == "cpu" == values.device.type and native.load() is not None


def linear(
    x: Tensor, bits: Tensor, values: Tensor, offsets: Tensor, scales: Tensor | None = None
) -> Tensor:
    """`naive.bitmask_linear` by the kernel, in x's type, with a gradient for x.

    x: (..., in); offsets: (out,) int64, where each row's values begin.
    Raises: ShapeError where the stored tensors do not fit together.
    """
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    if torch.is_grad_enabled() and x.requires_grad:
        y: Any = _Linear.apply(rows, bits, values, offsets, scales)
    else:
        y = _product(rows, bits, values, offsets, scales)
    return y.view(*x.shape[:-1], len(bits))


def decode(
    bits: Tensor, values: Tensor, offsets: Tensor, scales: Tensor | None, width: int
) -> Tensor:
    """The weight (out, in): float32, or bfloat16 of bfloat16 values."""
    kernel = native.function("bitmask_decode", *DECODE)
    assert kernel is not None
    check(bits, values, offsets, scales, width)
    dtype = torch.bfloat16 if values.dtype == torch.bfloat16 else torch.float32
    out = torch.empty(len(bits), width, dtype=dtype)
    fault = kernel(
        KINDS[values.dtype],
        out.data_ptr(),
        *_pointers(bits, values, offsets, scales),
        len(values),
        len(bits),
        width,
        torch.get_num_threads(),
    )
    refuse(fault)
    return out


def check(bits: Tensor, values: Tensor, offsets: Tensor, scales: Tensor | None, width: int) -> None:
    """Raises: ShapeError for tensors that a kernel may not be given."""
    rows = len(bits)
    fits = bits.shape == (rows, -(-width // 8)) and offsets.shape == (rows,) and values.dim() == 1
    fits = fits and bits.dtype == torch.uint8 and offsets.dtype == torch.int64
    fits = fits and all(t.is_contiguous() for t in (bits, values, offsets))
    if values.dtype == torch.int8:
        fits = fits and scales is not None and scales.shape == (rows,)
        fits = fits and scales is not None and scales.dtype == torch.float32
    if not fits:
        got = f"bits {tuple(bits.shape)}, offsets {tuple(offsets.shape)}"
        want = (
            f"bits {(rows, -(-width // 8))}, offsets {(rows,)}, contiguous, a scale a row of int8"
        )
        raise ShapeError("bitmask", got=got, want=want, fix="Decode with the encoding's own shape.")


def refuse(fault: int) -> None:
    """Raises: ShapeError for what a kernel found at a row; MemoryError."""
    if not fault:
        return
    if fault == 2**63 - 1:
        raise MemoryError("no memory for a copy of the inputs")
    got = f"row {fault - 1} that does not end where the next begins"
    want = "as many values as bits are set"
    raise ShapeError("stored weight", got=got, want=want, fix="Copy the file again.")


def _pointers(*tensors: Tensor | None) -> tuple[int | None, ...]:
    return tuple(None if t is None else t.data_ptr() for t in tensors)


@functools.cache
def _operator() -> Any:
    schema = "bitmask_linear(Tensor x, Tensor bits, Tensor values, Tensor offsets, Tensor? scales)"
    return native.operator(f"{schema} -> Tensor", _run, _shape)


def _run(x: Tensor, bits: Tensor, values: Tensor, offsets: Tensor, scales: Tensor | None) -> Tensor:
    kernel = native.function("bitmask_linear", *LINEAR)
    assert kernel is not None
    check(bits, values, offsets, scales, x.shape[1])
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
        refuse(fault)
    return y


def _shape(
    x: Tensor, bits: Tensor, values: Tensor, offsets: Tensor, scales: Tensor | None
) -> Tensor:
    return x.new_empty(x.shape[0], bits.shape[0])


def _product(x: Tensor, *stored: Tensor | None) -> Tensor:
    y = _operator()(x.float(), *stored)
    return y if y.dtype == x.dtype else y.to(x.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bits: Tensor, values: Tensor, offsets: Tensor, scales: Tensor | None
    ) -> Tensor:
        ctx.stored, ctx.width = (bits, values, offsets, scales), x.shape[1]
        return _product(x, bits, values, offsets, scales)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        bits, values, offsets, scales = ctx.stored
        # rounding of x passes the gradient on
        weight = decode(bits, values, offsets, scales, ctx.width)
        return grads[0] @ weight.to(grads[0].dtype), None, None, None, None
