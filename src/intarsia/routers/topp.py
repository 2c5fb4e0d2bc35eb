"""Top-p gating: as many experts as a token needs (arXiv:2403.07652; MixLoRA's dynamic variant)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Card, Paper
from ..core.checks import above
from ..core.errors import ConfigError
from ..gating.gate import GateRouter, Terms


@dataclass(frozen=True)
class TopP:
    """The fewest experts whose p = softmax(x W^T / temperature) sum to at least `p`, by token.

    experts: E; p: the sum to reach, 0 < p <= 1; a token's first expert always counts;
    temperature: of the logits; std: of the gate's first weights; jitter: epsilon of the factors
    U(1 - epsilon, 1 + epsilon) on its input while training; balance, z: coefficients of the
    losses. Weights are the probabilities, not renormalised.

    Raises: ConfigError for a setting out of range.
    Source: arXiv:2403.07652; also the dynamic variant of MixLoRA (arXiv:2404.15159).
    """

    experts: int = 8
    p: float = 0.8
    temperature: float = 1.0
    std: float = 0.02
    jitter: float = 0.0
    balance: float = 0.01
    z: float = 0.0

    def __post_init__(self) -> None:
        """Check each setting; `Terms` checks those that all gates share.  Raises: ConfigError."""
        Terms.of(self)
        if not 0 < self.p <= 1:
            raise ConfigError("p", got=self.p, want="0 < p <= 1", fix="Try 0.8.")
        above("temperature", self.temperature, 0, "Try 1.")

    def build(self, width: int, *, generator: torch.Generator) -> TopPRouter:
        return TopPRouter(self, width, generator=generator)


class TopPRouter(GateRouter[TopP]):
    """The router of `TopP`.  x: (..., width) -> Routing (rows, E), 1 ... E experts a row."""

    def logits(self, rows: Tensor) -> Tensor:
        return super().logits(rows) / self.config.temperature

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the experts in falling order of p, p, and a mask of those needed, all (N, E).

        logits: (N, E); p = softmax(logits). Needed are the fewest experts whose p sum to
          `config.p`.
        """
        p, index = logits.softmax(-1).sort(descending=True, stable=True)
        before = p.detach().cumsum(-1) - p.detach()  # the sum over more probable experts
        needed = before < self.config.p
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
