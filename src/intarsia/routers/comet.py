"""COMET: k soft decision trees that each end on one expert (arXiv:2306.02824)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.schema import check, setting
from ..gating.gate import wide_linear
from ..gating.parts import PartsRouter, entropy, smooth_step


@dataclass(frozen=True)
class Comet:
    """g_j = sum_t softmax over all (t, j) of a_tj(x) + log P_t(j | x), for k trees t.

    Each of k binary trees has the experts as leaves, in heap order, so that any E is possible. P_t
    is the product of the splits S(w_i x + b_i) on the way to a leaf, S the smooth step, and
    a = A x + c are the logits of the leaves. Leaves with P = 0 get nothing: |g|_0 <= k once every
    split is 0 or 1.

    Not where loads must be even: no loss balances them.
    Raises: ConfigError for a setting out of range.
    Source: arXiv:2306.02824, and released code.
    Weights sum to 1. No loss balances the load. Two trees may end on the same expert, so that a
    token has at most k. "COMET+" is `PermutationSearch(Comet(...))`.
    """

    experts: int = setting(
        8, "The number E of experts, the leaves of each tree.", least=1, fix="Try 2."
    )
    active: int = setting(
        2, "The number k of trees, at most so many experts for a token.", least=1, fix="Try 2."
    )
    gamma: float = setting(
        10.0,
        "The width of the smooth step's band, outside which a split is 0 or 1.",
        above=0,
        fix="Try 10.",
    )
    entropy: float = setting(
        0.05,
        "The coefficient lambda of lambda mean_x sum_t H(P_t(. | x)), in nats as released, "
        "which drives each tree to one leaf; the paper searches 0.05 ... 10.",
        least=0,
    )

    def __post_init__(self) -> None:
        check(self)

    def build(self, width: int, *, generator: torch.Generator | None = None) -> CometRouter:
        return CometRouter(self, width, generator=generator)


class CometRouter(PartsRouter):
    """The router of `Comet`.  x: (..., width) -> Routing of shape (rows, E).

    splits: w (k (E - 1), width), U(-gamma/100, gamma/100) at first; offsets: b (k (E - 1),), 0 at
    first: splits start inside the band for tokens of a norm up to about 30; some of them start
    outside, without a gradient, for longer tokens. leaves: A (k E, width), leaf_offsets: c (k E,),
    U(-0.05, 0.05).
    """

    normalised = True

    def __init__(
        self, config: Comet, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        """Draw the weights of k binary trees with E leaves each, one leaf for each expert."""
        super().__init__(config.experts, config.active)
        self.config = config
        # small: each token goes both ways at first; a tree of E leaves has E - 1 inner nodes
        small, inner = config.gamma / 100, config.active * (config.experts - 1)
        self.splits = nn.Parameter(torch.empty(inner, width))
        self.splits.data.uniform_(-small, small, generator=generator)
        self.offsets = nn.Parameter(torch.zeros(inner))
        self.leaves = nn.Parameter(torch.empty(config.active * config.experts, width))
        self.leaves.data.uniform_(-0.05, 0.05, generator=generator)
        self.leaf_offsets = nn.Parameter(torch.empty(config.active * config.experts))
        self.leaf_offsets.data.uniform_(-0.05, 0.05, generator=generator)

    def trees(self, rows: Tensor) -> Tensor:
        """Return P, the share of a token that reaches each leaf of each tree.

        rows: tokens (N, d). Returns (N, k, E): k trees, one leaf for each of E experts.
        """
        # an inner node sends the share S(w_i x + b_i) to its left child
        u = wide_linear(rows, self.splits, self.offsets)  # w_i x + b_i
        u = u.view(len(rows), self.active, self.experts - 1)
        return leaf_probabilities(smooth_step(u, self.config.gamma))

    def parts(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return each tree's weights of the experts, (N, k, E), and the entropy loss by its name.

        A token's weights sum to 1 over all k trees. Small loss: each tree sends it to one leaf.
        """
        p = self.trees(rows)
        a = wide_linear(rows, self.leaves, self.leaf_offsets).view_as(p)  # (N, k, E)
        reached = p > 0
        # 1 inside the log as well: the gradient of log 0 is not a number
        logits = (a + torch.where(reached, p, 1.0).log()).masked_fill(~reached, -math.inf)
        gates = logits.flatten(1).softmax(-1).view_as(p)  # over all k E pairs
        losses = {"entropy": self.config.entropy * entropy(p)} if self.config.entropy else {}
        return gates, losses


def leaf_probabilities(splits: Tensor) -> Tensor:
    """Multiply the splits on the way to each leaf of a binary tree.

    splits: (..., E - 1), the share that each inner node i sends to its left child, node 2 i + 1;
      the rest goes to node 2 i + 2. Node E - 1 + j is leaf j.
    Returns the share that reaches each of the E leaves, (..., E).
    """
    level = splits.new_ones(*splits.shape[:-1], 1)
    first, leaves = 0, list[Tensor]()
    while level.shape[-1]:
        level_splits = splits[..., first : first + level.shape[-1]]
        inner = level_splits.shape[-1]  # of this level's nodes, leaves are the last ones
        leaves.append(level[..., inner:])
        first += level.shape[-1]
        into = level[..., :inner]
        # s to the left child, 1 - s to the right one
        level = torch.stack([into * level_splits, into * (1 - level_splits)], -1).flatten(-2)
    return torch.cat(leaves, -1)


CARD = Card(
    "comet",
    kind="router",
    config=Comet,
    paper=Paper(
        "2306.02824",
        2023,
        "COMET: Learning Cardinality Constrained Mixture of Experts with Trees and Local Search",
    ),
    tags=frozenset({"learned"}),
    tiny={"experts": 5},
    summary="k soft decision trees that settle on one expert each.",
    family="differentiable selection",
    names=("COMET",),
)
