"""Recognise layers with quantised weights: bitsandbytes' int8 and 4 bits, torchao's tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import FoldError
from ...core.foreign import tensor_of
from ...formats.packed_linear import PackedLinear
from .blocks import unwrapped, walk


def quantised(module: nn.Module) -> bool:
    """Return True if this layer's weight is held by a quantiser, or stored in a format."""
    if isinstance(unwrapped(module), PackedLinear):
        return True
    weight = tensor_of(unwrapped(module))
    return isinstance(weight, Tensor) and _is_quantised(weight)


def _is_quantised(t: Tensor) -> bool:
    """Return True for numbers that are no plain floating-point tensor."""
    return not (t.is_floating_point() or t.is_complex()) or type(t.detach()) is not Tensor


def in_full(module: nn.Module, name: str, t: Tensor) -> Tensor:
    """Return a tensor as it is; for a quantised weight, an empty one of its shape ("meta")."""
    if not _is_quantised(t) or not isinstance(t, nn.Parameter):
        return t
    if isinstance(module, nn.Linear) and name == "weight":  # 4 bits are packed, two in a byte
        return torch.empty(module.out_features, module.in_features, device="meta")
    return torch.empty(t.shape, device="meta")


def refuse_quantised(subject: str, module: nn.Module, path: str) -> None:
    """Check that no quantiser, which could not be changed, holds a weight.  Raises: FoldError."""
    if quantised(module):
        got = f"{type(unwrapped(module)).__name__} at {path!r}, whose weight is quantised"
        fix = "Load the adapter into the model in floating point and fold that: intarsia.load."
        raise FoldError(subject, got=got, want="weights in floating point", fix=fix)


def keep_trainable(model: nn.Module) -> None:
    """Prevent bitsandbytes' 4-bit layers from switching to a form for inference on a CPU.

    They switch for good in the first evaluation; that form has no gradient, so that a training
    after it would learn nothing, without an error.
    """
    for _, wrapped in walk(model):
        module: Any = unwrapped(wrapped)
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
            if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
                # converts the weight back from the CPU's form
                module._save_to_state_dict({}, "", False)
