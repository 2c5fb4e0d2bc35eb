"""DSelect-k: k selectors that write an expert's number in smooth bits (arXiv:2106.03760)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.errors import ConfigError
from ..gating.gate import wide_linear
from ..gating.parts import PartsRouter, smooth_step, unsettled

MASS = 1e-3  # below this a selector's reachable mass costs no more


@dataclass(frozen=True)
class DSelectK:
    """g = sum_t softmax(x V)_t r(z_t), r(z)_j = prod_b S(z_b) or 1 - S(z_b) by bit b of j.

    Each of k selectors has m = ceil(log2 E) bits S(z_b), z = x W, S the smooth step (the paper's
    per-example gating). Once its bits are 0 or 1 a selector is on one expert.

    experts: E. If it is no power of two, codes from E on are nobody's: g then sums to less than 1,
    and `reach` times the mean of 1 / (a selector's mass on experts) is in the loss.
    active: k; gamma: width of the smooth step's band, the sharper the smaller;
    entropy: coefficient of the selectors' mean entropy, as a share of log E, which settles them;
    reach: see experts.

    Raises: ConfigError on a setting that cannot be.
    Source: arXiv:2106.03760.
    Two selectors may end on one expert, so that a token has up to k.
    """

    experts: int = 8
    active: int = 2
    gamma: float = 1.0
    entropy: float = 0.01
    reach: float = 0.01

    def __post_init__(self) -> None:
        for what in ("experts", "active"):
            if getattr(self, what) < 1:
                raise ConfigError(what, got=getattr(self, what), want="at least 1", fix="Try 2.")
        if not 0 < self.gamma < math.inf:
            raise ConfigError("gamma", got=self.gamma, want="a number above 0", fix="Try 1.")
        for what in ("entropy", "reach"):
            if not getattr(self, what) >= 0:
                raise ConfigError(what, got=getattr(self, what), want="0 or more", fix="Try 0.01.")

    def build(self, width: int, *, generator: torch.Generator) -> DSelectKRouter:
        return DSelectKRouter(self, width, generator=generator)


class DSelectKRouter(PartsRouter):
    """The router of `DSelectK`.  x: (..., width) -> Routing of shape (rows, E).

    bits: W (k m, width), U(-gamma/100, gamma/100) at first, so that z starts inside the band for
    tokens of a norm up to about 30, and a share of it outside, without a gradient, for longer ones;
    mix: V (k, width), U(-0.05, 0.05) at first.
    """

    def __init__(self, config: DSelectK, width: int, *, generator: torch.Generator) -> None:
        super().__init__(config.experts, config.active)
        self.config = config
        self.width = (config.experts - 1).bit_length()  # m
        self.normalised = config.experts == 2**self.width
        small = config.gamma / 100
        self.bits = nn.Parameter(torch.empty(config.active * self.width, width))
        self.bits.data.uniform_(-small, small, generator=generator)
        self.mix = nn.Parameter(torch.empty(config.active, width))
        self.mix.data.uniform_(-0.05, 0.05, generator=generator)

    def selectors(self, rows: Tensor) -> Tensor:
        """r, (N, k, E)."""
        z = wide_linear(rows, self.bits).view(len(rows), self.active, self.width)
        r = z.new_ones(len(rows), self.active, 1)
        for s in smooth_step(z, self.config.gamma)[..., None].unbind(2):  # (N, k, 1)
            r = torch.cat([r * (1 - s), r * s], -1)  # the next bit of the number is 0, or 1
        return r[..., : self.experts]

    def parts(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        r = self.selectors(rows)
        losses: dict[str, Tensor] = {}
        if self.config.entropy:
            losses["entropy"] = self.config.entropy * unsettled(r)
        if self.config.reach and not self.normalised:
            losses["reach"] = self.config.reach * (1 / r.sum(-1).clamp_min(MASS)).mean()
        return wide_linear(rows, self.mix).softmax(-1)[..., None] * r, losses


CARD = Card(
    "dselect",
    kind="router",
    config=DSelectK,
    paper=Paper(
        "2106.03760",
        2021,
        "DSelect-k: Differentiable Selection in the Mixture of Experts with Applications to "
        "Multi-Task Learning",
    ),
    tags=frozenset({"learned"}),
    tiny={"experts": 6},
    summary="k selectors that write an expert's number in bits, from soft to hard.",
    family="differentiable selection",
    names=("DSelect-k",),
)
