"""The router of a union of experts: pairs of tokens and experts by a share (arXiv:2503.02495)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Routing
from ..core.checks import above, at_least, below_one, between, one_of
from ..gating.gate import gated, wide_linear
from ..gating.router import Router, check_counts

SELECTS = ("data", "tokens", "experts")
GATES = ("frozen", "sizes", "straight-through", "score")
WEIGHS = ("straight-through", "score")
WEIGHT = 0.01  # of the sizes' loss: Adam steps alike, and a clipped norm is the task's
LEAST = 1e-6  # size of an output, below which its logarithm says nothing


@dataclass(frozen=True)
class UnionGate:
    """The gate of a union of E experts: a share of their pairs with tokens is kept.

    experts: E; share: pairs kept; select, gate: see `UnionOfExperts`; always: how many tokens at
    the start of a sequence every expert takes; warmup: the share of the training in which the share
    of the pairs falls from 1; std: deviation of the gate's first weights.

    Raises: ConfigError for a setting out of range.
    """

    experts: int = 8
    share: float = 0.5
    select: str = "data"
    gate: str = "frozen"
    always: int = 0
    warmup: float = 0.0
    std: float = 0.02

    def __post_init__(self) -> None:
        check_counts(self.experts)
        above("share", self.share, 0, "Half of the experts is 0.5.")
        between("share", self.share, 0, 1, "Half of the experts is 0.5.")
        one_of("select", self.select, SELECTS)
        one_of("gate", self.gate, GATES)
        at_least("always", self.always, 0)
        below_one("warmup", self.warmup, "A tenth of the training is 0.1; 0 is none.")

    @property
    def non_causal(self) -> bool:
        """True if later tokens have a say in where earlier ones go."""
        return self.select != "tokens"

    def build(self, width: int, *, generator: torch.Generator | None = None) -> UnionRouter:
        return UnionRouter(self, width, generator=generator)


class UnionRouter(Router):
    """The router of `UnionGate`.  x: (B, T, width) -> Routing of shape (B T, E).

    p = softmax(x W^T + b). With a share s, of each sequence on its own:
      "data", each expert takes its ceil(s T) positions of largest p;
      "tokens", each token takes its max(1, floor(s E)) experts of largest p;
      "experts", a sequence has as many, those with the largest mean logit over its tokens.
    Padding has none and counts in no T. A matrix x (T, width) is one sequence.
    """

    by_expert = ("weight", "bias")

    def __init__(
        self, config: UnionGate, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config.experts)
        self.config, self.warm = config, config.share
        self.weight = nn.Parameter(torch.empty(config.experts, width))
        nn.init.normal_(self.weight, std=config.std, generator=generator)
        self.bias = nn.Parameter(torch.zeros(config.experts))
        if config.gate == "frozen":
            self.requires_grad_(False)

    @property
    def share(self) -> float:
        """The share of the pairs that is kept now; in evaluation, the settings' share."""
        return self.warm if self.training else self.config.share

    @property
    def weighs(self) -> bool:
        """True if the weights of pairs are other than 1, or have a gradient."""
        return self.config.gate in WEIGHS

    @property
    def teaches(self) -> bool:
        """True if the experts' outputs are to be given to `teach`."""
        return self.training and self.config.gate == "sizes" and torch.is_grad_enabled()

    def before_step(self, step: int, steps: int) -> None:
        """Set the share of pairs (token, expert) that are kept in this training step.

        During the warmup it falls linearly from 1 to `share` of the router's settings.
        """
        done = 1.0 if not self.config.warmup else min(1, step / (self.config.warmup * steps))
        self.warm = 1 - done * (1 - self.config.share)

    def forward(self, x: Tensor) -> Routing:
        """Route all tokens of x, (B, T, d) or (T, d); padding is read from the context."""
        rows, valid = x.reshape(-1, x.shape[-1]), self._valid_rows(x)
        length = x.shape[-2] if x.dim() > 2 else len(rows)
        return self.remember(self._routing(rows, valid, length))

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        """Route rows (N, d) as the tokens of one sequence."""
        return self._routing(rows, valid, len(rows))

    def _routing(self, rows: Tensor, valid: Tensor | None, length: int) -> Routing:
        """Choose pairs of tokens and experts within each sequence on its own, and weigh them."""
        logits = wide_linear(rows if self.weighs else rows.detach(), self.weight, self.bias)
        p = logits.softmax(-1)  # S, (N, E)
        shape = (-1, max(1, length), self.experts)
        mask = None if valid is None else valid.view(shape[:2])
        with torch.no_grad():
            selected = self._select(logits.view(shape), p.view(shape), mask).view_as(p)
        match self.config.gate:
            case "straight-through":
                weight = 1 + (p - p.detach())  # exactly 1
            case "score":
                weight = p * self.experts  # 1 where all are equal
            case _:
                weight = torch.ones_like(p)
        return gated(weight, rows.dtype, selected)

    def _select(self, logits: Tensor, p: Tensor, valid: Tensor | None) -> Tensor:
        """Select the pairs (token, expert) to keep by the setting `select`: (B, T, E) bool."""
        # logits, p = softmax(logits): (B, T, E); valid: (B, T) bool, False = padding
        if self.config.select == "data":
            return self._best_positions(p, valid)
        k = max(1, math.floor(self.share * self.experts + 1e-9))
        score = logits.nan_to_num(0)
        if self.config.select == "experts":
            # the mean logit of a sequence, for all of its tokens
            real = torch.ones_like(p[..., 0]) if valid is None else valid.to(p)
            total = (score * real[..., None]).sum(1, keepdim=True)
            score = (total / real.sum(1).clamp_min(1)[:, None, None]).expand_as(p)
        selected = torch.zeros_like(p, dtype=torch.bool).scatter(-1, score.topk(k).indices, True)
        selected[:, : self.config.always] = True
        return selected if valid is None else selected & valid[..., None]

    def _best_positions(self, p: Tensor, valid: Tensor | None) -> Tensor:
        """Select, for each expert, its ceil(s T) positions of largest p in each sequence."""
        # p: (B, T, E); valid: (B, T) bool, False = padding; s: the share of pairs to keep
        score = p.nan_to_num(0)  # topk would put a NaN first
        score[:, : self.config.always] = 2  # above every probability
        if valid is None:
            n = math.ceil(self.share * p.shape[1] - 1e-9)
            best = score.topk(n, dim=1).indices
            return torch.zeros_like(p, dtype=torch.bool).scatter(1, best, True)
        score[~valid] = -1
        # sequences of different lengths: compare each position's rank with its sequence's number
        n = (self.share * valid.sum(1).double() - 1e-9).ceil()
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return (rank < n[:, None, None]) & valid[..., None]

    def teach(self, rows: Tensor, token: Tensor, expert: Tensor, outputs: Tensor) -> None:
        """Add the loss by which the gate learns to predict how large the experts' outputs are.

        0.01 mean (x_t W_e + b_e - log |o_te| + m)^2 over the chosen pairs, m the mean of log |o|.
        rows: tokens x (N, d); token, expert: (P,), the row and the expert of each pair; outputs: o
          (P, out), the expert's output for it.
        """
        last = self.last
        if last is None or not len(token):
            return
        predicted = wide_linear(rows.detach(), self.weight, self.bias)[token, expert]
        size = outputs.detach().to(predicted.dtype).norm(dim=-1).clamp_min(LEAST).log()
        loss = F.mse_loss(predicted, size - size.mean())
        self.context.routings[self] = replace(last, losses={**last.losses, "sizes": WEIGHT * loss})
