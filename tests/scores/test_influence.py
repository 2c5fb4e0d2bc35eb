"""Attention influence against what the loss does when a key is taken out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.scores.influence import by_distance, influence

DRAW = torch.Generator().manual_seed(0)
B, H, G, N, D = 2, 4, 2, 9, 3
Q = torch.randn(B, H, N, D, generator=DRAW, dtype=torch.float64)
K, V = (torch.randn(B, G, N, D, generator=DRAW, dtype=torch.float64) for _ in range(2))
W = torch.randn(B, H, N, D, generator=DRAW, dtype=torch.float64)  # dL / d(A v) of a linear loss


def attention() -> Tensor:
    scores = Q @ K.repeat_interleave(H // G, 1).mT * D**-0.5
    return scores.masked_fill(torch.ones(N, N).triu(1).bool(), -torch.inf).softmax(-1)


def gradient() -> Tensor:
    return W @ V.repeat_interleave(H // G, 1).mT


def test_it_is_the_loss_without_a_key_whose_share_the_others_take() -> None:
    a, g = attention(), gradient()
    change = influence(a, g)
    loss = (a * g).sum((-2, -1))  # linear in A, so that first order is exact
    for i, j in ((3, 1), (8, 8), (5, 0)):
        without = a.clone()
        without[..., i, j] = 0
        without[..., i, :] /= without[..., i, :].sum(-1, keepdim=True)
        assert_close(change[..., i, j], (without * g).sum((-2, -1)) - loss)


def test_a_query_with_one_key_has_nobody_to_share_with() -> None:
    a, g = attention(), gradient()
    assert_close(influence(a, g)[..., 0, 0], -g[..., 0, 0])


def test_sums_beyond_a_window_are_those_of_the_masked_matrix() -> None:
    sink, block = 2, 2
    bins = by_distance(Q, K, V, W, sink=sink, block=block)
    changes = influence(attention(), gradient()).abs()
    i, j = torch.arange(N)[:, None], torch.arange(N)[None]
    for window in (0, 2, 4, 8):
        outside = (j <= i) & (j >= sink) & (i - j >= window)
        by_bin = torch.stack(
            [
                (changes * (outside & ((i - j) // block == b))).sum((-2, -1)).mean(0)
                for b in range(len(bins[0]))
            ],
            -1,
        )
        want = by_bin.sum(-1)
        assert_close(bins[:, window // block :].sum(-1), want, rtol=1e-5, atol=1e-6)
