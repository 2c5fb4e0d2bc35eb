"""A plain linear layer of given weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Make the layer x W^T + b of copies, without a draw.  weight: (out, in), bias: out entries."""
    out, width = weight.shape
    # nn.Linear's own initialisation would draw from the global generator
    layer: nn.Linear = nn.utils.skip_init(  # pyright: ignore
        nn.Linear, width, out, bias is not None, device=weight.device, dtype=weight.dtype
    )
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias.flatten())
    return layer
