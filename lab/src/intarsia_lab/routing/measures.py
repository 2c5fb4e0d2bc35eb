"""Measures of a routing: how much two choices know of each other, ranks, shares by place."""

from __future__ import annotations

import torch
from torch import Tensor

from intarsia.core import Routing


def contingency(a: Tensor, b: Tensor, rows: int, columns: int) -> Tensor:
    """Count how often a = i and b = j, for all pairs (i, j).

    a, b: (N,) int64, below `rows` and `columns`. Returns (rows, columns) int64.
    """
    # a pair as one number
    return torch.bincount(a * columns + b, minlength=rows * columns).view(rows, columns)


def entropy(counts: Tensor) -> float:
    """Return the entropy of counts as shares of their sum, in nats.  counts: any shape."""
    p = counts.double().flatten()
    p = p[p > 0] / p.sum()
    return float(-(p * p.log()).sum()) + 0.0  # no -0


def mutual_information(table: Tensor) -> float:
    """Return sum_ij p_ij log p_ij / (p_i p_j), in nats, 0 or more.

    table: counts (R, C); p_ij: their shares, p_i and p_j: the shares of rows and columns.
    """
    # I = H(rows) + H(columns) - H(table)
    information = entropy(table.sum(1)) + entropy(table.sum(0)) - entropy(table)
    return max(0.0, information)


def normalised_information(table: Tensor) -> float:
    """Return the mutual information over the mean entropy, 2 I / (H_rows + H_columns).

    table: counts (R, C). 0 = rows and columns are independent, or neither varies; 1 = each
      determines the other.
    """
    total = entropy(table.sum(1)) + entropy(table.sum(0))
    return min(1.0, 2 * mutual_information(table) / total) if total > 0 else 0.0


def first_choice(routing: Routing) -> Tensor:
    """Return the expert of largest weight of each token, E for a token without one, (T,) int64."""
    gates = routing.dense().detach()
    best = gates.argmax(1)
    # argmax of a row of zeros would be expert 0
    has = torch.zeros(routing.tokens, dtype=torch.bool, device=gates.device)
    has[routing.token] = True
    return torch.where(has, best, routing.experts)


def gate_entropy(routing: Routing) -> float:
    """Return the entropy of a token's weights as shares, in nats, mean over tokens.

    It is 0 for one expert.
    """
    # as shares of their sum, which need not be 1
    gates = routing.dense().detach().abs()
    share = gates / gates.sum(1, keepdim=True).clamp_min(1e-12)
    return float(-(share * share.clamp_min(1e-12).log()).sum(1).mean()) + 0.0


def variation(load: Tensor) -> float:
    """Return standard deviation over mean: 0 = even, sqrt(E - 1) = one has all.

    load: (E,), tokens of each expert.
    """
    load = load.double()
    mean = load.mean()
    return float(load.std(correction=0) / mean) if mean > 0 else 0.0


def dropped(requested: Routing, served: Routing) -> Tensor:
    """Return the share of each token's (token, expert) pairs that were dropped, (T,) float64.

    requested: the router's choice; served: the pairs that were computed. A token without any pair
      has the share 1.
    """
    requested_counts, had = (
        torch.bincount(r.token, minlength=r.tokens).double() for r in (requested, served)
    )
    return 1 - had / requested_counts.clamp_min(1)


def by_quarter(values: Tensor) -> list[float]:
    """Return the means of four consecutive parts of nearly equal size.

    values: (N, ...), N at least 4.
    """
    return [float(part.double().mean()) for part in values.tensor_split(4)]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation of two rows, mean over rows.

    a, b: (N, E). Rows in which a or b is constant are left out.
    """
    # Pearson's correlation of the ranks
    x, y = (_ranks(v) for v in (a, b))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    scale = (x.square().sum(1) * y.square().sum(1)).sqrt()
    varies = scale > 0
    return float(((x * y).sum(1)[varies] / scale[varies]).mean()) if bool(varies.any()) else 0.0


def _ranks(v: Tensor) -> Tensor:
    """Return the ranks of each row's entries; equal entries have the mean of their ranks.

    v: (N, E). Returns (N, E) float64, from 0.
    """
    # (N, E): how many entries are smaller
    less = (v[:, :, None] > v[:, None, :]).sum(2)
    equal = (v[:, :, None] == v[:, None, :]).sum(2)
    return less.double() + (equal.double() - 1) / 2
