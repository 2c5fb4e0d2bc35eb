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
    """The result of `swap`.

    kept: the new mask (out, in); before, after: sum |eps| over the rows; constant: channels
    without a variance.
    """

    kept: Tensor
    before: float
    after: float
    constant: int


@torch.no_grad()
def swap(
    weight: Tensor,
    mask: Tensor,
    statistics: Statistics,
    score: Tensor,
    *,
    cycles: float = 50,
    tolerance: float = 0.02,
    power: float = 1.0,
    pattern: NofM | None = None,
    guard: bool = True,
) -> Swapped:
    """Exchange a pruned and a kept weight in each row, again and again, until its error is small.

    A row's expected error eps is the sum of W_j E_j over its pruned weights, E_j the mean of input
    j. For eps > 0 the pruned weight of the largest W_j E_j / V_j^power becomes kept, V_j the
    variance of input j, and the kept weight of the lowest score with W_j E_j < 0 is pruned; for
    eps < 0 all signs are reversed (section 3.2). No weight moves twice, and every row keeps as
    many weights as before.
    weight: W, (out, in); mask: (out, in) bool, True = kept; statistics: E_j and V_j; score: (out,
      in), low = pruned first.
    cycles: exchanges of a row at most, below 1 a share of its width; tolerance: a row stops below
      this share of the layer's mean |eps| at the start; guard: it also stops where an exchange
      would not shrink |eps|, or turn its sign; pattern: n of m, both weights are of one group.
    Returns the new mask, and the sum of |eps| before and after.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    w, score = weight.to(dtype), score.to(dtype)
    mean, spread = statistics.mean.to(w), statistics.variance.to(w)
    constant = int((spread <= TINY).sum())
    gain = w * mean  # (out, in): what keeping a weight takes off eps
    ranked = gain / spread.clamp_min(TINY) ** power
    initial, mask = mask, mask.clone()
    eps = gain.masked_fill(mask, 0).sum(1)
    before = float(eps.abs().sum())
    least = tolerance * eps.abs().mean()
    rows = torch.arange(len(w), device=w.device)
    for _ in range(round(cycles * w.shape[1]) if cycles < 1 else int(cycles)):
        rows = rows[eps[rows].abs() > least]
        if not len(rows):
            break
        sign = eps[rows].sign()[:, None]
        signed_gain = gain[rows] * sign
        may_come, may_go = ~(initial | mask)[rows], (initial & mask)[rows]
        # grow: the pruned weight that takes most off |eps| for its variance
        grown = (ranked[rows] * sign).masked_fill(~may_come, -math.inf).argmax(1)
        # prune: the lowest score among the kept weights, of the other sign or the same group
        if pattern is None:
            may_go &= signed_gain < 0
        else:
            may_go &= _same_group(grown, w.shape[1], pattern)
        # of those that may be pruned, the one of the lowest score
        cost = score[rows].masked_fill(~may_go, math.inf)
        pruned = cost.argmin(1)
        row_index = torch.arange(len(rows), device=w.device)
        after = eps[rows] + gain[rows, pruned] - gain[rows, grown]
        better = may_go[row_index, pruned] & may_come[row_index, grown]
        # a row is done if its swap would not help
        if guard:
            better &= (after.abs() < eps[rows].abs()) & (after * eps[rows] >= 0)
        rows, grown, pruned, after = rows[better], grown[better], pruned[better], after[better]
        mask[rows, grown], mask[rows, pruned] = True, False
        eps[rows] = after
    return Swapped(mask, before, float(eps.abs().sum()), constant)


def _same_group(place: Tensor, width: int, pattern: NofM) -> Tensor:
    """Mark the columns of the group of each row's column: (rows,) -> (rows, width) bool."""
    group = torch.arange(width, device=place.device) // pattern.m
    return group[None, :] == (place // pattern.m)[:, None]
