"""COIN: a picture as the quantised weights of a small network fitted to it (arXiv:2103.03123)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .siren import OMEGA, layer_sizes, siren

LR = 5e-3


def coin_width(payload: int, depth: int, axes: int, channels: int) -> int:
    """Return the largest width of hidden layers with which a network fits into some bytes."""
    width = 1
    # bytes grow with the width: stop at the first one that does not fit
    while coin_bytes([axes, *[width + 1] * depth, channels]) <= payload:
        width += 1
    return width


def coin_bytes(sizes: Sequence[int]) -> int:
    """Return a network's bytes: one for each weight, and a float16 step for each layer."""
    return sum(layer_sizes(sizes)) + 2 * (len(sizes) - 1)


def coin(
    values: Tensor, coordinates: Tensor, sizes: Sequence[int], *, steps: int, seed: int
) -> Tensor:
    """Fit a SIREN to each signal, quantise its weights to 8 bits, and reconstruct from these.

    values: (signals, points, channels) in [0, 1]; coordinates: (points, axes) in (-1, 1); sizes:
      widths of all layers, inputs and outputs among them.  -> (signals, points, channels).
    """
    # A SIREN is an MLP with sines as activations.
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for layer, (fan_in, count) in enumerate(zip(sizes, layer_sizes(sizes), strict=False)):
        # SIREN's initialisation
        bound = 1 / fan_in if layer == 0 else math.sqrt(6 / fan_in) / OMEGA
        drawn = torch.rand(len(values), count, generator=generator) * 2 - 1
        parts.append((drawn * bound).requires_grad_())
    x = coordinates.expand(len(values), -1, -1)
    optimiser = torch.optim.Adam(parts, lr=LR)
    for _ in range(steps):
        output = siren(x, torch.cat(parts, 1), sizes) + 0.5
        optimiser.zero_grad()
        (output - values).square().mean((1, 2)).sum().backward()
        optimiser.step()
    with torch.no_grad():
        # one quantisation step for each layer and signal: its largest weight becomes 127
        steps_of = [part.abs().amax(1, keepdim=True).div(127).half().float() for part in parts]
        pairs = zip(parts, steps_of, strict=True)
        rounded = [(part / s).round().clamp(-127, 127) * s for part, s in pairs]
        return siren(x, torch.cat(rounded, 1), sizes) + 0.5
