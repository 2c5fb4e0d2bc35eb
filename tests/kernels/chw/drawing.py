"""Tensors that tests of steps share."""

from __future__ import annotations

import torch
from torch import Tensor


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers that depend on the shape and the seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
