"""Noisy top-k gating with its two losses (arXiv:1701.06538, sections 2.1, 4 and appendix A)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, Paper, Routing
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..gating.gate import of_real, wide_linear
from ..gating.random_source import RandomSource, seeded_by
from ..gating.router import Router, check_counts
from ..gating.settings import ACTIVE, EXPERTS

SMALL = 1e-6  # the least standard deviation of the noise


@dataclass(frozen=True)
class NoisyTopK:
    """G = softmax(top-k(H)), H = x W_g + z softplus(x W_n), z ~ N(0, 1) while training.

    P(x)_e is the probability that e is among the k when its noise alone is drawn again. CV is
    standard deviation over mean.

    Not where two forwards in training must be equal: the noise is drawn again.
    Raises: ConfigError for a setting out of range: k above E, or one of several experts, as its
    weight would always be 1.
    """

    experts: int = setting(8, EXPERTS)
    active: int = setting(2, ACTIVE, fix="Try 2.")
    std: float = setting(
        0.0,
        "The standard deviation of the first W_g; 0, as in the paper, so that only the noise "
        "chooses at first (W_n starts at 0).",
        least=0,
    )
    importance: float = setting(
        0.1, "The coefficient of CV(sum_x G(x))^2 (eq. 7), the experts' weights.", least=0
    )
    load: float = setting(
        0.1,
        "The coefficient of CV(sum_x P(x))^2 (eq. 11), the experts' tokens; there is no such "
        "loss at k = E.",
        least=0,
    )

    def __post_init__(self) -> None:
        """Check each setting, and that a gradient reaches the gate.  Raises: ConfigError."""
        check(self)
        check_counts(self.experts, self.active)
        if self.active == 1 < self.experts:
            got = "1, a weight of 1 always"
            fix = "Use intarsia.routers.Switch or TopK(active=1, scale='prob')."
            raise ConfigError("active", got=got, want="at least 2 of several experts", fix=fix)

    def build(self, width: int, *, generator: torch.Generator | None = None) -> NoisyTopKRouter:
        return NoisyTopKRouter(self, width, generator=generator)


class NoisyTopKRouter(Router):
    """The router of `NoisyTopK`.  x: (..., width) -> Routing of shape (rows, E), k experts a row.

    gate, spread: W_g and W_n, both (E, width).  noise: z comes from it, the same on every device.
    """

    by_expert = ("gate", "spread")
    normalised = equal_counts = True

    def __init__(
        self, config: NoisyTopK, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config.experts)
        self.config = config
        self.gate = nn.Parameter(torch.empty(config.experts, width))
        nn.init.normal_(self.gate, std=config.std, generator=generator)
        self.spread = nn.Parameter(torch.zeros(config.experts, width))
        self.noise = RandomSource(seeded_by(generator), self.context)

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        """Choose k experts for each token; in training with normal noise on the logits."""
        if not self.training:
            noise = rows.new_zeros(len(rows), 1)
        else:
            noise = self.noise.drawn(len(rows), self._normal).to(rows.device, non_blocking=True)
        if valid is None:
            return self._route(rows, noise)
        # noise was drawn for all rows, so that padding changes no token's noise
        return of_real(rows, valid, lambda real: self._route(real, noise[valid]))

    def _normal(self, rows: int) -> Tensor:
        """Draw standard normal noise for `rows` tokens and all experts.  (rows, E)."""
        return self.noise.normal(rows, self.experts)

    def _route(self, rows: Tensor, noise: Tensor) -> Routing:
        """Route rows that are no padding; noise: z (N, E), standard normal, or zeros (N, 1)."""
        clean = wide_linear(rows, self.gate)  # x W_g, (N, E)
        spread = F.softplus(wide_linear(rows, self.spread)).clamp_min(SMALL)
        noisy = clean + noise.to(clean.dtype) * spread  # eq. 4, H
        top, index = noisy.topk(self.config.active)  # eq. 5, (N, k)
        weight = top.softmax(-1)  # eq. 3, G
        routing = Routing.from_topk(index, weight.to(rows.dtype), self.experts)
        if not (self.training and len(rows)):
            return routing
        # G over all experts, 0 where an expert was not chosen
        gates = torch.zeros_like(clean).scatter(1, index, weight)
        return replace(routing, losses=self._losses(gates, chances(clean, noisy, spread, top)))

    def _losses(self, gates: Tensor, chance: Tensor | None) -> dict[str, Tensor]:
        """Return the two balance losses by name, times their coefficients."""
        # gates: G (N, E), 0 where not chosen; chance: P (N, E), of being chosen;
        # "importance" makes the sums of weights equal, "load" the expected numbers of tokens
        losses: dict[str, Tensor] = {}
        if self.config.importance:
            losses["importance"] = self.config.importance * variation(gates.sum(0))  # eq. 6 and 7
        if self.config.load and chance is not None:
            losses["load"] = self.config.load * variation(chance.sum(0))  # eq. 10 and 11
        return losses


def chances(clean: Tensor, noisy: Tensor, spread: Tensor, top: Tensor) -> Tensor | None:
    """Return the probability that an expert is chosen if its noise alone is drawn again (eq. 8).

    clean: logits without noise; noisy: H, logits with noise; spread: standard deviation of the
      noise, all (N, E); top: (N, k), the k largest of `noisy`.
    Returns P (N, E), or None at k = E, where every expert is chosen.
    """
    k, experts = top.shape[1], clean.shape[1]
    if k == experts:
        return None
    # the k-th largest H of all others: the k-th of all for an expert that is out, the (k + 1)-th
    # for one that is in
    kth, next_largest = top[:, -1:], noisy.topk(k + 1).values[:, -1:]  # (N, 1) both
    threshold = torch.where(noisy > next_largest, next_largest, kth)
    return torch.special.ndtr((clean - threshold) / spread)  # eq. 9


def variation(total: Tensor) -> Tensor:
    """Return the squared coefficient of variation, variance / mean^2, of a vector.  (E,) -> ()."""
    return total.var(correction=0) / (total.mean().square() + SMALL)


CARD = Card(
    "noisy_topk",
    kind="router",
    config=NoisyTopK,
    paper=Paper(
        "1701.06538",
        2017,
        "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
    ),
    tags=frozenset({"sparse", "learned", "stochastic"}),
    tiny={"experts": 4},
    summary="The k experts of largest logit plus learned noise, for each token.",
    family="token choice",
    names=("Noisy top-k gating", "Sparsely-gated MoE"),
)
