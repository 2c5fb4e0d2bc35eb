"""Top-k softmax gating (arXiv:1701.06538), in the forms of Mixtral (arXiv:2401.04088), Switch
(arXiv:2101.03961) and LLaVA-MoLE (arXiv:2401.16160)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Card, Paper
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..gating.gate import GateRouter
from ..gating.router import check_counts
from ..gating.settings import ACTIVE, BALANCE_OF_K, BIAS, EXPERTS, JITTER, STD, Z

SCALES = ("renormalised", "prob", "ste", "none")


@dataclass(frozen=True)
class TopK:
    """The k experts of largest p = softmax(x W^T), for each token.

    Not where an expert's tokens must have a bound, unless the mixture has a `capacity`.
    Raises: ConfigError for a setting out of range: k above E, or one renormalised expert of
    several, as its weight would always be 1.
    Source: arXiv:1701.06538; forms of Mixtral (arXiv:2401.04088), Switch (arXiv:2101.03961) and
    LLaVA-MoLE (arXiv:2401.16160).
    """

    experts: int = setting(8, EXPERTS)
    active: int = setting(2, ACTIVE)
    scale: str | None = setting(
        None,
        'The weight of a chosen expert: "renormalised", p_e over the sum of the k chosen ones '
        '(Mixtral, MixLoRA); "prob", p_e (Switch); "ste", 1, with the gradient of p_e '
        '(straight-through); "none", 1, where the task\'s loss has no gradient for the router, '
        'as in the release of LLaVA-MoLE; None = "renormalised", and where the gate replaces '
        "one of the host, as that gate weighs, with its bias.",
        choices=SCALES,
    )
    bias: bool = setting(False, BIAS)
    std: float = setting(0.02, STD)
    jitter: float = setting(0.0, JITTER)
    balance: float = setting(0.01, BALANCE_OF_K)
    z: float = setting(0.0, Z)

    def __post_init__(self) -> None:
        """Check each setting, and that a gradient reaches the gate.  Raises: ConfigError."""
        check(self)
        check_counts(self.experts, self.active)
        scale = self.scale or SCALES[0]
        if scale == "renormalised" and self.active == 1 < self.experts:
            got = "'renormalised' with one active expert, a weight of 1 always"
            want = "a weight that teaches the router"
            raise ConfigError("scale", got=got, want=want, fix="Use scale='prob' or 'ste'.")

    def build(self, width: int, *, generator: torch.Generator | None = None) -> TopKRouter:
        return TopKRouter(self, width, generator=generator)


class TopKRouter(GateRouter[TopK]):
    """The router of `TopK`.  x: (..., width) -> Routing of shape (rows, E), k experts a row."""

    equal_counts = True

    def __init__(
        self, config: TopK, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, width, generator=generator)
        # a weight that is always 1 has no gradient for the router, but sums to 1
        single = config.active == 1 and config.scale == "none"
        self.scale = config.scale or SCALES[0]
        self.normalised = single or self.scale == "renormalised"

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the k best experts of each row and their weights, (N, k) both, and None."""
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
