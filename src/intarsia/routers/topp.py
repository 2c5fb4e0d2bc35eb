"""Top-p gating: as many experts as a token needs (arXiv:2403.07652; MixLoRA's dynamic variant)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Card, Paper
from ..core.schema import check, setting
from ..gating.gate import GateRouter
from ..gating.settings import BALANCE, EXPERTS, JITTER, STD, Z


@dataclass(frozen=True)
class TopP:
    """The fewest experts with p = softmax(x W^T / temperature) that sum to at least `p`, by token.

    Weights are the probabilities, not renormalised.

    Not where a token's cost must have a bound: with nearly even probabilities it has nearly all
    experts.
    Raises: ConfigError for a setting out of range.
    Source: arXiv:2403.07652; also the dynamic variant of MixLoRA (arXiv:2404.15159).
    """

    experts: int = setting(8, EXPERTS)
    p: float = setting(
        0.8,
        "The sum of probabilities to reach; a token's first expert always counts.",
        above=0,
        most=1,
        fix="Try 0.8.",
    )
    temperature: float = setting(
        1.0, "The temperature that divides the logits.", above=0, fix="Try 1."
    )
    std: float = setting(0.02, STD)
    jitter: float = setting(0.0, JITTER)
    balance: float = setting(0.01, BALANCE)
    z: float = setting(0.0, Z)

    def __post_init__(self) -> None:
        check(self)

    def build(self, width: int, *, generator: torch.Generator | None = None) -> TopPRouter:
        return TopPRouter(self, width, generator=generator)


class TopPRouter(GateRouter[TopP]):
    """The router of `TopP`.  x: (..., width) -> Routing (rows, E), 1 ... E experts a row."""

    def logits(self, rows: Tensor) -> Tensor:
        return super().logits(rows) / self.config.temperature

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the experts in falling order of p, p, and a mask of those needed, all (N, E).

        p = softmax(logits). Needed are the fewest experts for which the p sum to `config.p`.
        """
        p, index = logits.softmax(-1).sort(descending=True, stable=True)
        before = p.detach().cumsum(-1) - p.detach()  # the sum over more probable experts
        needed = before < self.config.p
        # the first expert always counts: with NaN in the logits no comparison holds
        first = torch.arange(self.experts, device=p.device) == 0
        return index, p, needed | first


CARD = Card(
    "topp",
    kind="router",
    config=TopP,
    paper=Paper(
        "2403.07652", 2024, "Harder Tasks Need More Experts: Dynamic Routing in MoE Models"
    ),
    tags=frozenset({"sparse", "learned"}),
    tiny={"experts": 4, "p": 0.5},
    summary="As many experts as it takes for their probabilities to reach p, for each token.",
    family="token choice",
    names=("Top-p", "Dynamic routing"),
)
