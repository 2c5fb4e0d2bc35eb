"""Residual nets of several widths for Sparse-IFT and RigL."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import thin_resnets

WIDTHS, EPOCHS, DENSITY = (8, 16, 32), 4, 0.25
OPTIONS: dict[str, Any] = {
    "batch_size": 128,
    "lr": 0.1,
    "weight_decay": 5e-4,
    "optimizer": thin_resnets.nesterov,
    "trackers": (),
}


def resnet(seed: int) -> nn.Module:
    """Return a thin ResNet-8 for grey pictures of 28 x 28, with a stem that halves them.

    seed: of its weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # one strided convolution: the blocks cost a quarter
        stem = (nn.Conv2d(1, WIDTHS[0], 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        sizes = zip((WIDTHS[0], *WIDTHS), WIDTHS, (1, 2, 2), strict=False)
        blocks = [thin_resnets.ResidualBlock(a, b, stride) for a, b, stride in sizes]
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))
        return nn.Sequential(*stem, *blocks, *pool)
