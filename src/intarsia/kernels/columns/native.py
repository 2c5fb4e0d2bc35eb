"""The kernel of columns.c: its signature, its operator of torch, its gradient."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ShapeError
from .. import native

KINDS = {torch.float32: 0, torch.bfloat16: 1}
INPUTS = (torch.float32, torch.bfloat16, torch.float16)
P, N, I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int  # noqa: E741
LINEAR = (I, P, P, P, P, P, N, N, N, N, I)


def runs(x: Tensor, values: Tensor) -> bool:
    """Return True if this machine has a kernel for inputs x and kept weights of these types."""
    supported = values.dtype in KINDS and x.dtype in INPUTS
    return supported and x.device.type == "cpu" == values.device.type and native.load() is not None


def linear(x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor) -> Tensor:
    """Compute `naive.columns_linear`, x W^T, by the kernel, in x's dtype, with a gradient for x.

    x: (..., in) -> (..., out); values, columns: (kept,), each kept weight of W and its column, row
      by row; offsets: (out + 1,), where each row of W begins in `values`.
    Raises: ShapeError where the stored tensors do not fit together.
    """
    # The kernel takes a matrix: all axes but the last are its rows.
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    if torch.is_grad_enabled() and x.requires_grad:
        y: Any = _ColumnsLinear.apply(rows, values, columns, offsets)
    else:
        y = _product(rows, values, columns, offsets)
    return y.view(*x.shape[:-1], len(offsets) - 1)


def bound(
    values: Tensor, columns: Tensor, offsets: Tensor, width: int, max_rows: int
) -> native.Bound | None:
    """Return a callable x -> x W^T, with the stored weight W built in; None without a kernel.

    The tensors of W: see `check`. width: W's inputs; max_rows: rows of x up to which the result is
    used, since for more rows it is faster to decode W.
    """
    if values.dtype not in KINDS:
        return None
    check(values, columns, offsets)
    settings, sides = (KINDS[values.dtype], len(values)), (len(offsets) - 1, width)
    return native.Bound.of("columns", sides, settings, (values, columns, offsets), max_rows)


def check(values: Tensor, columns: Tensor, offsets: Tensor) -> None:
    """Raise ShapeError for tensors that a kernel may not be given: it trusts their addresses.

    values: (kept,), the kept weights of W, row by row; columns: (kept,) uint16, the column of each;
      offsets: (out + 1,) int32, where each row of W begins in `values`.
    """
    # uint16 columns: the weight has at most 65,536 inputs.
    fits = values.shape == columns.shape == (len(values),) and offsets.dim() == 1 and len(offsets)
    fits = fits and columns.dtype == torch.uint16 and offsets.dtype == torch.int32
    if not fits or not all(t.is_contiguous() for t in (values, columns, offsets)):
        got = f"{tuple(values.shape)} values, {tuple(columns.shape)} columns of {columns.dtype}"
        want, fix = "as many of uint16, contiguous", "Encode the weight with Columns()."
        raise ShapeError("stored weight", got=got, want=want, fix=fix)


@functools.cache
def _operator() -> Any:
    schema = "columns_linear(Tensor x, Tensor values, Tensor columns, Tensor offsets) -> Tensor"
    return native.operator(schema, _run, lambda x, *w: x.new_empty(x.shape[0], w[2].shape[0] - 1))


def _run(x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor) -> Tensor:
    """Call the kernel for x (N, in) in float32.  -> (N, out)."""
    kernel = native.function("columns_linear", *LINEAR)
    assert kernel is not None
    check(values, columns, offsets)
    x, y = x.contiguous(), x.new_empty(len(x), len(offsets) - 1)
    pointers = (t.data_ptr() for t in (x, y, values, columns, offsets))
    sizes = len(values), len(offsets) - 1, x.shape[1], len(x)
    if fault := kernel(KINDS[values.dtype], *pointers, *sizes, torch.get_num_threads()):
        native.refuse(fault)
    return y


def _product(x: Tensor, *stored: Tensor) -> Tensor:
    """Compute x W^T by torch's operator, in float32; return it in x's dtype, (N, out)."""
    # x: (N, in); stored: values, columns and offsets of W, as `check` describes them
    y = _operator()(x.float(), *stored)
    return y if y.dtype == x.dtype else y.to(x.dtype)


class _ColumnsLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor) -> Tensor:
        """Compute the product x W^T, (N, out), and keep the stored weight for the backward."""
        ctx.stored, ctx.width = (values, columns, offsets), x.shape[1]
        return _product(x, values, columns, offsets)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of x, dy W, (N, in), and None for each stored tensor."""
        values, columns, offsets = ctx.stored
        row = torch.arange(len(offsets) - 1).repeat_interleave(offsets.long().diff())
        # a transposed product: add each weighted gradient to its column
        parts = grads[0][:, row] * values.to(grads[0].dtype)
        back = grads[0].new_zeros(len(grads[0]), ctx.width)
        return back.index_add(1, columns.long(), parts), None, None, None
