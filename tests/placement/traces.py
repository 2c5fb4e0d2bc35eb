"""Traces of odd sizes, drawn from a seed."""

from __future__ import annotations

import torch

from intarsia.placement import Trace


def random_trace(
    tokens: int = 60,
    layers: int = 3,
    experts: int = 8,
    k: int = 2,
    *,
    length: int = 7,
    seed: int = 0,
) -> Trace:
    """Draw a trace with uneven loads, and choices that depend on those of the layer before."""
    draws = torch.Generator().manual_seed(seed)
    popular = torch.rand(layers, experts, generator=draws) * 2
    follows = torch.randn(layers, experts, experts, generator=draws)
    experts_of: list[torch.Tensor] = []
    for layer in range(layers):
        scores = popular[layer] + torch.randn(tokens, experts, generator=draws)
        if layer:
            scores = scores + follows[layer][experts_of[-1][:, 0]]
        experts_of.append(scores.topk(k).indices)
    row = torch.arange(tokens)
    weight = torch.rand(tokens, layers, k, generator=draws)
    return Trace(
        torch.stack(experts_of, 1), experts, row // length, row % length, weight, row * 3 % 11
    )
