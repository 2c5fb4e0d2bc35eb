"""On a CPU in bfloat16: the weight is brought into oneDNN's layout once, not at each product."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

BF16 = torch.bfloat16
OPS: Any = torch.ops.mkldnn  # those that torch.compile calls for a frozen model


def packs(weight: Tensor) -> bool:
    """Return True if this machine and torch can pack a weight (out, in) in oneDNN's layout."""
    if weight.device.type != "cpu" or weight.dtype != BF16 or weight.dim() != 2:
        return False
    # These operators are private to torch: a release may be without them.
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not (torch.backends.mkldnn.is_available() and all(hasattr(OPS, name) for name in names)):
        return False
    return bool(OPS._is_mkldnn_bf16_supported())


class Packed:
    """x -> x W^T + b in bfloat16, with a gradient for x; the values of `naive` to rounding.

    weight: (out, in), bias: (out,) or None, of type bfloat16; later changes of them are not seen.
    rows: of x, most often; other numbers compute the same.  Twice the memory of the weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        """Bring a weight (out, in) and its transpose into oneDNN's layout."""
        weight = weight.detach()
        self.outputs = len(weight)
        self.bias = None if bias is None else bias.detach().to(BF16)
        # The forward multiplies by W, the backward by its transpose; the layout suits so many rows.
        self.forward = OPS._reorder_linear_weight(weight.contiguous(), rows)
        self.backward = OPS._reorder_linear_weight(weight.T.contiguous(), rows)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute x W^T + b in bfloat16, (..., in) -> (..., out); x may need a gradient."""
        x = x.to(BF16)
        # no rows: oneDNN takes none, and the graph must stay connected
        if not x.numel():
            return x.new_zeros(*x.shape[:-1], self.outputs) + 0 * x.sum()
        if not (torch.is_grad_enabled() and x.requires_grad):
            return _product(x, self.forward, self.bias)
        return cast(Tensor, _PackedLinear.apply(x, self))


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Compute x W^T + bias in oneDNN.  packed: W in oneDNN's layout; bias: (out,) or None."""
    return OPS._linear_pointwise(x.contiguous(), packed, bias, "none", [], "")


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed) -> Tensor:
        ctx.packed = packed
        return _product(x, packed.forward, packed.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of x, dy W, and None for `packed`."""
        return _product(grads[0], ctx.packed.backward, None), None
