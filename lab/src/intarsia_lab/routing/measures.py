"""What is told of a routing: how much two choices know of each other, ranks, shares by place."""

from __future__ import annotations

import torch
from torch import Tensor

from intarsia.core import Routing


def contingency(a: Tensor, b: Tensor, rows: int, columns: int) -> Tensor:
    """Count how often a = i and b = j.  a, b: (N,) int64 -> (rows, columns) int64."""
    return torch.bincount(a * columns + b, minlength=rows * columns).view(rows, columns)


def entropy(counts: Tensor) -> float:
    """Return the entropy of shares, in nats.  counts: any shape."""
    p = counts.double().flatten()
    p = p[p > 0] / p.sum()
    return float(-(p * p.log()).sum()) + 0.0  # no -0


def mutual_information(table: Tensor) -> float:
    """sum_ij p_ij log p_ij / (p_i p_j), in nats, 0 or more.  table: counts (R, C)."""
    information = entropy(table.sum(1)) + entropy(table.sum(0)) - entropy(table)
    return max(0.0, information)


def normalised_information(table: Tensor) -> float:
    """Compute 2 I / (H_rows + H_columns) of a table of counts: mutual information by mean entropy.

    0 = rows and columns are independent, or neither varies; 1 = each determines the other.
    """
    total = entropy(table.sum(1)) + entropy(table.sum(0))
    return min(1.0, 2 * mutual_information(table) / total) if total > 0 else 0.0


def first_choice(routing: Routing) -> Tensor:
    """Return the expert of largest weight of each row, E for a row without one.

    Returns (T,) int64.
    """
    gates = routing.dense().detach()
    best = gates.argmax(1)
    has = torch.zeros(routing.tokens, dtype=torch.bool, device=gates.device)
    has[routing.token] = True
    return torch.where(has, best, routing.experts)


def gate_entropy(routing: Routing) -> float:
    """Return the mean over rows of the entropy of their weights as shares, in nats.

    0 for one expert.
    """
    gates = routing.dense().detach().abs()
    share = gates / gates.sum(1, keepdim=True).clamp_min(1e-12)
    return float(-(share * share.clamp_min(1e-12).log()).sum(1).mean()) + 0.0


def variation(load: Tensor) -> float:
    """Return standard deviation over mean: 0 = even, sqrt(E - 1) = one has all.  load: (E,)."""
    load = load.double()
    mean = load.mean()
    return float(load.std(correction=0) / mean) if mean > 0 else 0.0


def dropped(requested: Routing, served: Routing) -> Tensor:
    """Return the share of each token's pairs with experts that were dropped, (T,) float64.

    requested: the router's choice; served: the pairs that were computed. A token without a choice
    counts as one that has made one.
    """
    requested_counts, had = (
        torch.bincount(r.token, minlength=r.tokens).double() for r in (requested, served)
    )
    return 1 - had / requested_counts.clamp_min(1)


def by_quarter(values: Tensor) -> list[float]:
    """Return means of four consecutive parts of nearly equal size.

    values: (N, ...), N at least 4.
    """
    return [float(part.double().mean()) for part in values.tensor_split(4)]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Compute Spearman's correlation of each row of a and b, and average it over rows.

    Rows in which a or b is constant are left out.  a, b: (N, E).
    """
    x, y = (_ranks(v) for v in (a, b))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    scale = (x.square().sum(1) * y.square().sum(1)).sqrt()
    varies = scale > 0
    return float(((x * y).sum(1)[varies] / scale[varies]).mean()) if bool(varies.any()) else 0.0


def _ranks(v: Tensor) -> Tensor:
    """Return the ranks of each row's entries, equal ones their mean.  (N, E) -> (N, E) float64."""
    less = (v[:, :, None] > v[:, None, :]).sum(2)
    equal = (v[:, :, None] == v[:, None, :]).sum(2)
    return less.double() + (equal.double() - 1) / 2
