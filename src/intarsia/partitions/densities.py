"""Densities of layers, and masks of those densities, by score or at random."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..core import Partition
from ..core.checks import between
from .topk import keep_random, keep_top


def uniform(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Return the same density for every layer.

    shapes: layer -> its weight's shape; density: share of weights to keep, 0 ... 1.
    Raises: ConfigError for a density outside 0 ... 1.
    """
    between("density", density, 0, 1, "Try 0.5.")
    return dict.fromkeys(shapes, density)


def erdos_renyi(
    shapes: Mapping[str, Sequence[int]], density: float, *, kernel: bool = True
) -> dict[str, float]:
    """Return a density for each layer, lower for larger layers, with `density` over all of them.

    A layer's density is proportional to (out + in + kh + kw) / (out in kh kw), with kh, kw the
    sides of a convolution's kernel. shapes: layer -> its weight's shape; density: the density of
    all weights together; kernel: False leaves kh + kw out of the sum. A layer with a density that
    would be above 1 is dense, and the others get more.

    Raises: ConfigError for a density outside 0 ... 1.
    Source: SET (arXiv:1707.04780), equation 1; RigL (arXiv:1911.11134), section 3 (1).
    """
    between("density", density, 0, 1, "Try 0.5.")
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {n: sum(s if kernel else s[:2]) / max(1, size[n]) for n, s in shapes.items()}
    dense: set[str] = {name for name, count in size.items() if not count}
    while True:
        # layers that would be above 1 are dense; the rest is shared out among the others again
        remaining = density * sum(size.values()) - sum(size[n] for n in dense)
        weighted = sum(raw[n] * size[n] for n in raw if n not in dense)
        scale = remaining / weighted if weighted else 0.0
        over = {n for n in raw if n not in dense and raw[n] * scale > 1}
        if not over:
            return {n: 1.0 if n in dense else max(0.0, raw[n] * scale) for n in raw}
        dense |= over


def keep_shares(scores: Mapping[str, Tensor], densities: Mapping[str, float]) -> Partition:
    """Select the round(density * size) largest scores of each tensor; of equal ones the first.

    scores: name -> a score of each weight; densities: name -> the share to select. Returns a
    partition with one part, the selected weights.
    Raises: ConfigError for a density outside 0 ... 1, or a NaN.
    """
    label: dict[str, Tensor] = {}
    for name, score in scores.items():
        between(f"density of {name!r}", densities[name], 0, 1, "Try 0.5.")
        label |= keep_top({name: score}, round(densities[name] * score.numel())).label
    return Partition(label, 1)


def random_masks(
    shapes: Mapping[str, Sequence[int]],
    densities: Mapping[str, float],
    *,
    generator: torch.Generator,
) -> Partition:
    """Select round(density * size) weights of each tensor, all with equal probability.

    shapes: name -> shape; densities: name -> the share to select; generator: source of the draw.
    Returns a partition with one part, the selected weights.
    Raises: ConfigError for a density outside 0 ... 1.
    """
    label: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        between(f"density of {name!r}", densities[name], 0, 1, "Try 0.5.")
        count = round(densities[name] * math.prod(shape))
        label |= keep_random({name: shape}, count, generator=generator).label
    return Partition(label, 1)
