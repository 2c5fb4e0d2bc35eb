"""Expert-choice routing: each expert takes the tokens it likes best (arXiv:2202.09368)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Card, Paper
from ..core.errors import ConfigError
from ..gating.gate import GateRouter, Terms, room_for
from ..gating.router import check_counts


@dataclass(frozen=True)
class ExpertChoice:
    """Each expert takes the ceil(c T / E) tokens of largest p = softmax(x W^T) (section 3.2).

    G, I = top-k(p^T) over the T tokens of the batch, padding aside; a pair's weight is p. Every
    expert has as many tokens, without a balance loss; a token has 0 ... E experts, c on average.
    Tokens of NaN come last.

    experts: E; capacity: c, experts per token on average, as many as E; std: of the gate's first
    weights; jitter: epsilon of the factors U(1 - epsilon, 1 + epsilon) on its input while training;
    z: coefficient of the z-loss.

    Raises: ConfigError on a setting that cannot be.
    Not for decoders: who gets a place depends on later tokens; and an answer depends on the other
    samples of its batch, in evaluation too.
    """

    experts: int = 8
    capacity: float = 2.0
    std: float = 0.02
    jitter: float = 0.0
    z: float = 0.0

    def __post_init__(self) -> None:
        check_counts(self.experts)
        if not 0 < self.capacity < math.inf:
            raise ConfigError(
                "capacity", got=self.capacity, want="a number above 0",
                fix="2 is the paper's: two experts per token on average.",
            )  # fmt: skip
        self.terms()

    def terms(self) -> Terms:
        return Terms(self.std, jitter=self.jitter, z=self.z)

    def build(self, width: int, *, generator: torch.Generator) -> ExpertChoiceRouter:
        return ExpertChoiceRouter(self, width, generator=generator)


class ExpertChoiceRouter(GateRouter):
    """The router of `ExpertChoice`.  x: (..., width) -> Routing (rows, E), each expert as often."""

    def __init__(self, config: ExpertChoice, width: int, *, generator: torch.Generator) -> None:
        super().__init__(width, config.experts, config.terms(), generator=generator)
        self.config = config

    def room(self, tokens: int) -> int:
        """k, how many of them each expert takes."""
        return min(tokens, room_for(self.config.capacity, tokens, self.experts))

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = logits.softmax(-1)  # (N, E)
        ranked = p.detach().nan_to_num(0)  # topk would put a NaN first
        best = ranked.topk(self.room(len(p)), dim=0).indices  # (k, E)
        taken = torch.zeros_like(p, dtype=torch.bool).scatter(0, best, True)
        return torch.arange(self.experts, device=p.device).expand_as(p), p, taken


CARD = Card(
    "expert_choice",
    kind="router",
    config=ExpertChoice,
    paper=Paper("2202.09368", 2022, "Mixture-of-Experts with Expert Choice Routing"),
    tags=frozenset({"sparse", "learned", "non_causal"}),
    tiny={"experts": 4, "capacity": 1.0},
    summary="Each expert takes the tokens it likes best, as many as any other.",
    family="expert choice",
    names=("EC",),
)
