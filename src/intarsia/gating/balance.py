"""Losses that keep experts busy; each is 0-dimensional and without its coefficient."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Routing


def _share(probs: Tensor, routing: Routing, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return how often each expert was chosen for a token, and its mean probability, (E,) both."""
    # probs: (N, E); valid: (N,) bool, False = padding, None = no padding
    tokens = probs.new_tensor(len(probs)) if valid is None else valid.sum().to(probs.dtype)
    tokens = tokens.clamp(min=1)
    real_probs = probs if valid is None else probs * valid[:, None]
    load = routing.load().to(probs.dtype)
    if valid is not None:  # a compiled graph keeps pairs of padding, which count nowhere
        load = torch.zeros_like(load).index_add(0, routing.expert, valid[routing.token].to(load))
    return load / tokens, real_probs.sum(0) / tokens


def balance(probs: Tensor, routing: Routing, valid: Tensor | None = None) -> Tensor:
    """Return the load balancing loss E sum_e f_e P_e, 0-dimensional, without its coefficient.

    f_e is the share of the tokens that have expert e, P_e the expert's mean probability. With k
    experts for each token the loss is smallest, k, at uniform routing, and E where all tokens have
    the same k experts with certainty. With k = 1 it is the Switch loss (arXiv:2101.03961, eq. 4),
    else Mixtral's, as in transformers. probs: (N, E), the softmax over all E experts; routing: the
    chosen pairs (token, expert); valid: (N,) bool, False = padding, which counts nowhere.
    """
    share, mean = _share(probs, routing, valid)
    return routing.experts * (share * mean).sum()


def z_loss(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean of logsumexp(logits)^2, which keeps logits small.

    Source: ST-MoE, arXiv:2202.08906, eq. 5.
    logits: (N, E); valid: (N,), False = padding.
    """
    squared = logits.logsumexp(-1).square()
    # without padding the plain mean, else that over real tokens
    if valid is None:
        return squared.mean()
    return (squared * valid).sum() / valid.sum().clamp(min=1)


def entropy(probs: Tensor) -> Tensor:
    """Return the entropy of distributions over E experts, in nats.  (..., E) -> (...)."""
    return torch.special.entr(probs).sum(-1)
