"""Swaps of kept and pruned weights that shrink a row's expected error (DSnoT, arXiv:2310.08915)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import NofM
from ..scores import Statistics

TINY = 1e-8  # of a channel that never changes


@dataclass(frozen=True)
class Swapped:
    """kept: the new mask (out, in); before, after: sum |eps| over the rows; constant: channels
    without a variance."""

    kept: Tensor
    before: float
    after: float
    constant: int


@torch.no_grad()
def swap(
    weight: Tensor,
    kept: Tensor,
    seen: Statistics,
    score: Tensor,
    *,
    cycles: int = 50,
    tolerance: float = 0.02,
    power: float = 1.0,
    pattern: NofM | None = None,
) -> Swapped:
    """Grow and prune a weight of each row at a time while |eps| shrinks, eps = sum_pruned W_j E_j.

    weight, score: (out, in), kept: bool; E_j, V_j: mean and variance of input j. For eps > 0 the
    pruned weight of the largest W_j E_j / V_j^power grows, and the kept one of the lowest score
    with W_j E_j < 0 goes; for eps < 0 the other way round (section 3.2). A row stops after
    `cycles`, below `tolerance` times the layer's mean |eps| at the start, and before a swap by
    which |eps| would not shrink or eps would change its sign.
    pattern: what goes is then the lowest score of the same group.  Every row keeps its number.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    w, score = weight.to(dtype), score.to(dtype)
    mean, spread = seen.mean.to(w), seen.variance.to(w)
    constant = int((spread <= TINY).sum())
    gain = w * mean  # (out, in): what growing takes off eps
    ranked = gain / spread.clamp_min(TINY) ** power
    kept = kept.clone()
    eps = gain.masked_fill(kept, 0).sum(1)
    before = float(eps.abs().sum())
    least = tolerance * eps.abs().mean()
    rows = torch.arange(len(w), device=w.device)
    for _ in range(cycles):
        rows = rows[eps[rows].abs() > least]
        if not len(rows):
            break
        sign = eps[rows].sign()[:, None]
        mask, own = kept[rows], gain[rows] * sign
        new = (ranked[rows] * sign).masked_fill(mask, -math.inf).argmax(1)
        may_go = mask & (own < 0) if pattern is None else mask & _same_group(new, mask, pattern)
        cost = score[rows].masked_fill(~may_go, math.inf)
        old = cost.argmin(1)
        at = torch.arange(len(rows), device=w.device)
        after = eps[rows] + gain[rows, old] - gain[rows, new]
        possible = may_go[at, old] & ~mask[at, new]
        better = (after.abs() < eps[rows].abs()) & (after * eps[rows] >= 0) & possible
        rows, new, old, after = rows[better], new[better], old[better], after[better]
        kept[rows, new], kept[rows, old] = True, False
        eps[rows] = after
    return Swapped(kept, before, float(eps.abs().sum()), constant)


def _same_group(place: Tensor, mask: Tensor, pattern: NofM) -> Tensor:
    """Where a row's weights are in the group of m of its place, (rows, in) bool."""
    group = torch.arange(mask.shape[1], device=mask.device) // pattern.m
    return group[None, :] == (place // pattern.m)[:, None]
