"""Reorder a layer's rows or columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def reorder(layer: nn.Module, index: Tensor, axis: int, *, fresh: bool = False) -> None:
    """Reorder rows (axis 0) or columns (axis 1) of a layer: row i becomes the former row index[i].

    With rows, the bias and a batch norm's statistics are reordered.  fresh: put the numbers into
    new tensors of the same parameters, so that a change that fails can be undone; False = write
    them in place.
    """
    owner: Any = layer
    for name, parameter in [*layer.named_parameters(recurse=False)]:
        if axis < parameter.dim() and (axis == 0 or name == "weight"):
            moved = parameter.data.index_select(axis, index.to(parameter.device))
            if fresh:
                parameter.data = moved
            else:
                parameter.copy_(moved)
    for name, buffer in [*layer.named_buffers(recurse=False)]:
        if axis == 0 and buffer.dim() and len(buffer) == len(index):
            owner._buffers[name] = buffer.index_select(0, index.to(buffer.device))
