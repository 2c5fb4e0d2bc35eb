"""Products of sorted rows with a matrix for each group: slice by slice, or all at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# torch's kernels want rows that begin at such an address
BYTES = 16
FAST = (torch.float32, torch.bfloat16, torch.float16)
# rows of a group up to which W x^T is up to three times as fast as x W^T, in float32 on a CPU
FEW = 6


def at_once(a: Tensor, b: Tensor) -> bool:
    """Return True if `torch.nn.functional.grouped_mm` can multiply a and b.

    a: (N, d), rows sorted by group; b: (E, d, h), a matrix for each group.
    """
    # torch's grouped product needs aligned rows, and a recent GPU
    if not hasattr(F, "grouped_mm") or a.dtype not in FAST or not (len(a) and a.numel()):
        return False
    if a.is_cuda and (
        a.dtype != torch.bfloat16 or torch.cuda.get_device_capability(a.device) < (8, 0)
    ):
        return False
    return all(_aligned(t) for t in (a, b))


def _aligned(t: Tensor) -> bool:
    """Return True if a tensor's rows begin at addresses that torch's kernels accept."""
    steps = [s * t.element_size() for s in t.stride() if s != 1]
    return t.data_ptr() % BYTES == 0 and 1 in t.stride()[-2:] and not any(s % BYTES for s in steps)


def few(rows: Tensor, weight: Tensor) -> bool:
    """Return True if groups have so few rows on average that W x^T is faster than x W^T.

    rows: x, (N, d), sorted by group; weight: W, (E, h, d), a matrix for each of E groups.
    """
    on_cpu = rows.device.type == "cpu" and rows.dtype == torch.float32
    return on_cpu and weight.stride(2) == 1 and len(rows) <= FEW * len(weight)


def sizes(ends: Tensor) -> list[int]:
    """Return how many rows each group has.  ends: (E,), where each group's rows end."""
    return ends.diff(prepend=ends.new_zeros(1)).tolist()


@torch.library.custom_op(
    "intarsia::grouped",
    mutates_args=(),
    schema="(Tensor rows, Tensor weight, Tensor ends) -> Tensor",
)
def grouped(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply each row by its group's matrix, W_e x_n.

    rows: x, (N, d), sorted by group; weight: W, (E, h, d); ends: (E,) int32, where each group of
      rows ends; a group may be empty.  -> (N, h). It is an operator, so that torch.compile need not
      know the sizes.
    """
    turned = few(rows, weight)
    if not turned and at_once(rows, weight.transpose(1, 2)):
        return F.grouped_mm(rows, weight.transpose(1, 2), offs=ends)
    out, parts = rows.new_empty(len(rows), weight.shape[1]), sizes(ends)
    for x, w, y in zip(rows.split(parts), weight.unbind(), out.split(parts), strict=True):
        # the transposed product reads W row by row, which is faster for a few columns of x
        if turned and len(x) <= FEW:
            y.copy_(torch.mm(w, x.t()).t())
        else:
            torch.mm(x, w.t(), out=y)
    return out


@torch.library.custom_op(
    "intarsia::grouped_outer", mutates_args=(), schema="(Tensor a, Tensor b, Tensor ends) -> Tensor"
)
def grouped_outer(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """Sum the outer products of a and b over each group's rows: the gradient of its matrix.

    a: (N, h), b: (N, d), sorted by group; ends: (E,) int32, where each group's rows end.  -> (E, h,
      d), a_e^T b_e for each group e.
    """
    if at_once(a, b):
        return F.grouped_mm(a.t(), b, offs=ends)
    out, parts = a.new_empty(len(ends), a.shape[1], b.shape[1]), sizes(ends)
    for x, y, z in zip(a.split(parts), b.split(parts), out.unbind(), strict=True):
        torch.mm(x.t(), y, out=z)
    return out


@grouped.register_fake
def _(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Return an empty tensor of the shape of `grouped`'s result, for tracing without data."""
    return rows.new_empty(rows.shape[0], weight.shape[1])


@grouped_outer.register_fake
def _(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """Return an empty tensor of the shape of `grouped_outer`'s result, for tracing without data."""
    return a.new_empty(ends.shape[0], a.shape[1], b.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    """Return the gradients of `grouped`'s rows (N, d) and weight (E, h, d), None for ends."""
    # grad: (N, h)
    rows, weight, ends = ctx.saved_tensors
    grad = grad.contiguous()
    return (
        grouped(grad, weight.transpose(1, 2), ends) if ctx.needs_input_grad[0] else None,
        grouped_outer(grad, rows, ends) if ctx.needs_input_grad[1] else None,
        None,
    )


grouped.register_autograd(_backward, setup_context=_save)
