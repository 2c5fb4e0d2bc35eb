"""Top-k softmax gating (arXiv:1701.06538), in the forms of Mixtral (arXiv:2401.04088), Switch
(arXiv:2101.03961) and LLaVA-MoLE (arXiv:2401.16160)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Card, Paper
from ..core.checks import one_of
from ..core.errors import ConfigError
from ..gating.gate import GateRouter, Terms

SCALES = ("renormalised", "prob", "ste", "none")


@dataclass(frozen=True)
class TopK:
    """The k experts of largest p = softmax(x W^T), for each token.

    experts: E; active: k; scale: the weight of a chosen expert; None = "renormalised", and in the
      place of a host's own gate what that gate does, with its bias,
      "renormalised", p_e over the sum of the k chosen ones (Mixtral, MixLoRA);
      "prob", p_e (Switch);
      "ste", 1, with the gradient of p_e (straight-through);
      "none", 1: the task's loss has no gradient for the router, as in LLaVA-MoLE's release.
    bias: whether the gate has one; std: of its first weights; jitter: epsilon of the factors
      U(1 - epsilon, 1 + epsilon) on its input while training; balance, z: coefficients of the
      balance loss (1 x k at uniform routing) and of the z-loss.

    Raises: ConfigError for a setting out of range: k above E, or one renormalised expert of
    several, whose weight would always be 1.
    Source: arXiv:1701.06538; forms of Mixtral (arXiv:2401.04088), Switch (arXiv:2101.03961) and
    LLaVA-MoLE (arXiv:2401.16160).
    """

    experts: int = 8
    active: int = 2
    scale: str | None = None
    bias: bool = False
    std: float = 0.02
    jitter: float = 0.0
    balance: float = 0.01
    z: float = 0.0

    def __post_init__(self) -> None:
        """Check each setting.  Raises: ConfigError."""
        Terms.of(self)
        scale = self.scale or SCALES[0]
        one_of("scale", scale, SCALES)
        if scale == "renormalised" and self.active == 1 < self.experts:
            got = "'renormalised' with one active expert, a weight of 1 always"
            want = "a weight that teaches the router"
            raise ConfigError("scale", got=got, want=want, fix="Use scale='prob' or 'ste'.")

    def build(self, width: int, *, generator: torch.Generator) -> TopKRouter:
        return TopKRouter(self, width, generator=generator)


class TopKRouter(GateRouter[TopK]):
    """The router of `TopK`.  x: (..., width) -> Routing of shape (rows, E), k experts a row."""

    equal_counts = True

    def __init__(self, config: TopK, width: int, *, generator: torch.Generator) -> None:
        """Draw the gate's W (E, width) from N(0, std).

        config: the settings; width: length of a token's vector; generator: source of the random
          weights.
        """
        super().__init__(config, width, generator=generator)
        # a weight that is always 1 has no gradient for the router, but sums to 1
        single = config.active == 1 and config.scale == "none"
        self.scale = config.scale or SCALES[0]
        self.normalised = single or self.scale == "renormalised"

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the k best experts of each row and their weights, (N, k) both, and None.

        logits: (N, E). None in place of a mask says that all k count.
        """
        p, index = logits.softmax(-1).topk(self.config.active)  # (N, k) both
        match self.scale:
            case "renormalised":
                weight = p / p.sum(-1, keepdim=True)
            case "prob":
                weight = p
            case "ste":
                weight = 1 + (p - p.detach())  # exactly 1
            case _:
                weight = torch.ones_like(p)
        return index, weight, None


CARD = Card(
    "topk",
    kind="router",
    config=TopK,
    paper=Paper(
        "1701.06538",
        2017,
        "Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer",
    ),
    tags=frozenset({"sparse", "learned"}),
    tiny={"experts": 4, "bias": True},
    summary="The k experts of largest probability, for each token.",
    family="token choice",
    names=("Top-k gating",),
)
