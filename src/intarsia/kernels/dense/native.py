"""The kernel of dense.c: its signature and its operator. Its definition is torch's product."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import native

INPUTS = (torch.float32, torch.bfloat16, torch.float16)
P, N, I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int  # noqa: E741
LINEAR = (I, P, P, P, N, N, N, I)
GROUPED = (P, P, P, P, N, N, N, I)
KINDS = {torch.float32: 0, torch.bfloat16: 1}


def runs(x: Tensor, weight: Tensor) -> bool:
    """Return True if this machine has a kernel for inputs and weights of these types."""
    supported = weight.dtype in KINDS and x.dtype in INPUTS and weight.is_contiguous()
    return supported and x.device.type == "cpu" == weight.device.type and native.load() is not None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Compute x W^T in x's dtype, summed in float32, without a gradient.

    x: (..., in); weight: W (out, in).  -> (..., out).
    """
    # The kernel takes a float32 matrix.
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    y = _operator()(rows.float(), weight)
    return y.to(x.dtype).view(*x.shape[:-1], len(weight))


def bound(weight: Tensor, max_rows: int) -> native.Bound | None:
    """Return a callable x -> x W^T, with the weight W built in; None without a kernel.

    weight: W (out, in); max_rows: rows of x up to which the result is used.
    """
    if weight.dtype not in KINDS or weight.dim() != 2:
        return None
    sides = len(weight), weight.shape[1]
    return native.Bound.of("dense", sides, (KINDS[weight.dtype],), (weight,), max_rows)


def runs_grouped(x: Tensor, weight: Tensor) -> bool:
    """Return True if `grouped` takes such inputs and weights (E, out, in) on this machine."""
    return x.dtype == torch.float32 == weight.dtype and runs(x, weight)


def grouped(x: Tensor, weight: Tensor, loads: Sequence[int], out: Tensor) -> Tensor:
    """Multiply each row of x by the weight of its expert, x_n W_e^T; write into `out`, return it.

    x: (N, in), the rows of expert 0, then the rows of expert 1, and so on; weight: (E, out, in);
      out: (N, out); all float32 and contiguous. It is fast for a few rows of each expert, since
      each weight is read once.
    """
    kernel = native.function("dense_grouped", *GROUPED)
    assert kernel is not None and sum(loads) == len(x) == len(out) and len(loads) == len(weight)
    assert x.is_contiguous() and out.is_contiguous()
    counts = torch.tensor(loads)
    pointers = (t.data_ptr() for t in (x, out, weight, counts))
    kernel(*pointers, *weight.shape, torch.get_num_threads())
    return out


@functools.cache
def _operator() -> Any:
    schema = "dense_linear(Tensor x, Tensor weight) -> Tensor"
    return native.operator(schema, _run, lambda x, w: x.new_empty(x.shape[0], w.shape[0]))


def _run(x: Tensor, weight: Tensor) -> Tensor:
    """Call the kernel for x (N, in) in float32: the operator on the CPU.  -> (N, out)."""
    # weight: (out, in)
    kernel = native.function("dense_linear", *LINEAR)
    assert kernel is not None and weight.shape[1] == x.shape[1]
    x, y = x.contiguous(), x.new_empty(len(x), len(weight))
    # C gets addresses: the tensors must live until the call returns.
    pointers = (t.data_ptr() for t in (x, y, weight))
    kernel(KINDS[weight.dtype], *pointers, *weight.shape, len(x), torch.get_num_threads())
    return y
