"""DSelect-k: k selectors that write an expert's number in smooth bits (arXiv:2106.03760)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.schema import check, setting
from ..gating.gate import wide_linear
from ..gating.parts import PartsRouter, smooth_step, unsettled

MASS = 1e-3  # the loss does not grow when a selector has less mass than this on experts


@dataclass(frozen=True)
class DSelectK:
    """g = sum_t softmax(x V)_t r(z_t), r(z)_j = prod_b S(z_b) or 1 - S(z_b) by bit b of j.

    Each of k selectors has m = ceil(log2 E) bits S(z_b), z = x W, S the smooth step (the paper's
    per-example gating). A selector is on one expert once its bits are 0 or 1.

    Not where each token needs k experts: two selectors may end on one.
    Raises: ConfigError for a setting out of range.
    Source: arXiv:2106.03760.
    Two selectors may end on the same expert, so that a token has at most k.
    """

    experts: int = setting(
        8,
        "The number E of experts; if it is no power of two, the codes from E on belong to no "
        "expert, and g sums to less than 1.",
        least=1,
        fix="Try 2.",
    )
    active: int = setting(
        2, "The number k of selectors, at most so many experts for a token.", least=1, fix="Try 2."
    )
    gamma: float = setting(
        1.0,
        "The width of the smooth step's band, outside which a bit is 0 or 1.",
        above=0,
        fix="Try 1.",
    )
    entropy: float = setting(
        0.01,
        "The coefficient of the selectors' mean entropy, as a share of log E, which drives each "
        "of them to one expert.",
        least=0,
        fix="Try 0.01.",
    )
    reach: float = setting(
        0.01,
        "The coefficient of the mean of 1 / (a selector's mass on experts), where E is no power "
        "of two.",
        least=0,
        fix="Try 0.01.",
    )

    def __post_init__(self) -> None:
        check(self)

    def build(self, width: int, *, generator: torch.Generator | None = None) -> DSelectKRouter:
        return DSelectKRouter(self, width, generator=generator)


class DSelectKRouter(PartsRouter):
    """The router of `DSelectK`.  x: (..., width) -> Routing of shape (rows, E).

    bits: W (k m, width), U(-gamma/100, gamma/100) at first: z starts inside the band for tokens of
    a norm up to about 30; some of it starts outside, without a gradient, for longer tokens.
    mix: V (k, width), U(-0.05, 0.05) at first.
    """

    def __init__(
        self, config: DSelectK, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config.experts, config.active)
        self.config = config
        self.width = (config.experts - 1).bit_length()  # m
        # with other E some of the 2^m numbers belong to no expert
        self.normalised = config.experts == 2**self.width
        small = config.gamma / 100
        self.bits = nn.Parameter(torch.empty(config.active * self.width, width))
        self.bits.data.uniform_(-small, small, generator=generator)
        self.mix = nn.Parameter(torch.empty(config.active, width))
        self.mix.data.uniform_(-0.05, 0.05, generator=generator)

    def selectors(self, rows: Tensor) -> Tensor:
        """Return each selector's distribution over the experts.

        rows: tokens (N, d). Returns r (N, k, E): expert j has the product, over the bits b of its
          number j, of S(z_b) where the bit is 1 and 1 - S(z_b) where it is 0. S is the smooth step,
          z = x W.
        """
        z = wide_linear(rows, self.bits).view(len(rows), self.active, self.width)  # (N, k, m)
        r = z.new_ones(len(rows), self.active, 1)
        # r(z)_j = prod_b S(z_b) or 1 - S(z_b), bit by bit
        for s in smooth_step(z, self.config.gamma)[..., None].unbind(2):  # (N, k, 1)
            r = torch.cat([r * (1 - s), r * s], -1)  # the next bit of the number is 0, or 1
        # codes from E on belong to no expert
        return r[..., : self.experts]

    def parts(self, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return softmax(x V)_t r(z_t) for each selector t, (N, k, E), and the losses by name.

        V weighs the k selectors; r(z_t) is selector t's distribution over the E experts. "entropy"
        makes a selector choose one expert; "reach" keeps it off numbers without an expert.
        """
        r = self.selectors(rows)
        losses: dict[str, Tensor] = {}
        if self.config.entropy:
            losses["entropy"] = self.config.entropy * unsettled(r)
        # the mass on codes without an expert is lost: keep each selector off them
        if self.config.reach and not self.normalised:
            losses["reach"] = self.config.reach * (1 / r.sum(-1).clamp_min(MASS)).mean()
        # the selectors' weights depend on the token, too: softmax(x V)
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
