"""COIN: a picture as the quantised weights of a small network fitted to it (arXiv:2103.03123)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .siren import OMEGA, layer_sizes, siren

LR = 5e-3


def coin_width(payload: int, depth: int, axes: int, channels: int) -> int:
    """The widest hidden layers whose weights fit into `payload` bytes, 1 at least."""
    width = 1
    while coin_bytes([axes, *[width + 1] * depth, channels]) <= payload:
        width += 1
    return width


def coin_bytes(sizes: Sequence[int]) -> int:
    """Bytes of a network: one for each weight, and a float16 step for each layer."""
    return sum(layer_sizes(sizes)) + 2 * (len(sizes) - 1)


def coin(values: Tensor, where: Tensor, sizes: Sequence[int], *, steps: int, seed: int) -> Tensor:
    """Fit a SIREN to each signal, round its weights to 8 bits a layer, and compute it from these.

    values: (signals, points, channels) in [0, 1]; where: (points, axes) in (-1, 1).
    -> (signals, points, channels).
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for layer, (fan_in, count) in enumerate(zip(sizes, layer_sizes(sizes), strict=False)):
        bound = 1 / fan_in if layer == 0 else math.sqrt(6 / fan_in) / OMEGA
        drawn = torch.rand(len(values), count, generator=generator) * 2 - 1
        parts.append((drawn * bound).requires_grad_())
    x = where.expand(len(values), -1, -1)
    optimiser = torch.optim.Adam(parts, lr=LR)
    for _ in range(steps):
        found = siren(x, torch.cat(parts, 1), sizes) + 0.5
        optimiser.zero_grad()
        (found - values).square().mean((1, 2)).sum().backward()
        optimiser.step()
    with torch.no_grad():
        steps_of = [part.abs().amax(1, keepdim=True).div(127).half().float() for part in parts]
        pairs = zip(parts, steps_of, strict=True)
        rounded = [(part / s).round().clamp(-127, 127) * s for part, s in pairs]
        return siren(x, torch.cat(rounded, 1), sizes) + 0.5
