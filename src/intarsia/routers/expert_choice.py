"""Expert-choice routing: each expert takes its most probable tokens (arXiv:2202.09368)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Card, Paper
from ..core.schema import check, setting
from ..gating.gate import GateRouter, room_for
from ..gating.settings import EXPERTS, JITTER, STD, Z


@dataclass(frozen=True)
class ExpertChoice:
    """The ceil(c T / E) tokens of largest p = softmax(x W^T), for each expert (section 3.2).

    G, I = top-k(p^T) over the T tokens of the batch, without padding; a pair's weight is p. All
    experts have equally many tokens, without a balance loss; a token has 0 ... E experts, c on
    average. Tokens of NaN are chosen last.

    Raises: ConfigError for a setting out of range.
    Not for decoders: a token's experts depend on later tokens, and on the other samples of its
    batch, in evaluation as well.
    """

    experts: int = setting(8, EXPERTS)
    capacity: float = setting(
        2.0,
        "The experts c of a token on average, at most E.",
        above=0,
        fix="2 is the paper's: two experts per token on average.",
    )
    std: float = setting(0.02, STD)
    jitter: float = setting(0.0, JITTER)
    z: float = setting(0.0, Z)

    def __post_init__(self) -> None:
        check(self)

    def build(self, width: int, *, generator: torch.Generator | None = None) -> ExpertChoiceRouter:
        return ExpertChoiceRouter(self, width, generator=generator)


class ExpertChoiceRouter(GateRouter[ExpertChoice]):
    """The router of `ExpertChoice`.  x: (..., width) -> Routing (rows, E), each expert as often."""

    by_row = False

    def room(self, tokens: int) -> int:
        """Return how many tokens each expert takes, k = ceil(c T / E).

        tokens: T, the tokens of the batch; c is the settings' capacity, E the number of experts.
        """
        return min(tokens, room_for(self.config.capacity, tokens, self.experts))

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Let each expert take its k tokens of largest p = softmax(logits).

        Returns the numbers of all experts, their p, and a mask of the pairs taken, all (N, E).
        """
        p = logits.softmax(-1)  # S = softmax(x W_g), (N, E)
        ranked = p.detach().nan_to_num(0)  # topk would put a NaN first
        best = ranked.topk(self.room(len(p)), dim=0).indices  # I, of top-k(S^T), as (k, E)
        selected = torch.zeros_like(p, dtype=torch.bool).scatter(0, best, True)  # P = onehot(I)
        return torch.arange(self.experts, device=p.device).expand_as(p), p, selected


CARD = Card(
    "expert_choice",
    kind="router",
    config=ExpertChoice,
    paper=Paper("2202.09368", 2022, "Mixture-of-Experts with Expert Choice Routing"),
    tags=frozenset({"sparse", "learned", "non_causal"}),
    tiny={"experts": 4, "capacity": 1.0},
    summary="Each expert takes its most probable tokens, as many as any other.",
    family="expert choice",
    names=("EC",),
)
