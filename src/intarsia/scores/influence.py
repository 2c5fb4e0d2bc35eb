"""Attention influence: the loss's change, to first order, without one key (MoA)."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6  # of 1 - A, where a query sees one key only
QUERIES = 128  # rows of A at a time


def influence(attention: Tensor, gradient: Tensor) -> Tensor:
    """Return how the loss would change if a query did not attend to a key, for each pair.

    E_ij = -A_ij (g_ij - sum_k A_ik g_ik) / (1 - A_ij), to first order, for query i and key j.
    attention: A (..., Q, K), the weights of the keys for each query, rows sum to 1; gradient: g =
      dL/dA, same shape. Returns E, same shape.
    Without key j the other keys of query i share its weight. Where a query sees one key (row 0)
    there is nothing to share, and E = -A g.
    Not for several keys at once: a sum of E is right as far as each is small.
    Source: arXiv:2406.14909, section 4.1, eq. 4.
    """
    # the mean of g under a query's attention weights
    mean = (attention * gradient).sum(-1, keepdim=True)
    remaining = 1 - attention
    renormalised = -attention * (gradient - mean) / remaining.clamp_min(EPS)
    return torch.where(remaining > EPS, renormalised, -attention * gradient)


def by_distance(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    gradient: Tensor,
    *,
    sink: int,
    block: int,
    scale: float | None = None,
) -> Tensor:
    """Sum, for each head, the influence of keys by their distance from the query: (H, bins).

    A key's influence on a query is |E|, how much the loss would change if the query did not attend
    to the key, see `influence`. Its sum over all queries and keys of one range of distances is a
    bin; bins are means over the B rows. A window of w tokens drops the keys at distance w and more,
    so that the sum of the bins from w / block on estimates its cost.
    query: (B, H, N, D) and keys: (B, G, N, D) with rotary positions applied, G divides H; values:
      (B, G, N, D'); gradient: dL / d(A v), (B, H, N, D'), A the attention weights. sink: so many
      first keys are left out, because every window keeps them. block: width of a bin; bin b has the
      distances b block ... (b + 1) block - 1. scale: of the scores, None = 1 / sqrt(D).
    A and dL/dA = (dL/d(A v)) v^T are computed for some queries at a time, so that no (N, N) of all
    heads is ever in memory.
    """
    batch, heads, length, size = query.shape
    heads_per_key = heads // keys.shape[1]
    factor = size**-0.5 if scale is None else scale
    bins = -(-length // block)
    total = torch.zeros(heads, bins, dtype=torch.float64)
    keys, values = (t.float().repeat_interleave(heads_per_key, 1) for t in (keys, values))
    place = torch.arange(length, device=query.device)
    for first in range(0, length, QUERIES):
        query_place = place[first : first + QUERIES, None]
        key_place = place[None, : int(query_place[-1]) + 1]
        last = key_place.shape[1]
        # recompute A and dL/dA for some queries and the keys that they see
        scores = query[:, :, query_place[:, 0]].float() @ keys[:, :, :last].mT * factor
        scores = scores.masked_fill(key_place > query_place, -torch.inf)
        attention = scores.softmax(-1)  # (B, H, Q, K)
        g = gradient[:, :, query_place[:, 0]].float() @ values[:, :, :last].mT
        change = influence(attention, g).abs().sum(0)  # (H, Q, K)
        # a causal key outside the sinks counts in the bin of its distance
        counted = (key_place <= query_place) & (key_place >= sink)
        bin_index = ((query_place - key_place)[counted] // block).cpu()
        total.index_add_(1, bin_index, change[:, counted].double().cpu())
    return total / batch
