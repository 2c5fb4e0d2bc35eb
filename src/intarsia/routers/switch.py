"""Switch gating: one expert per token, a limit of tokens per expert (arXiv:2101.03961)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import Card, Paper, Routing
from ..core.schema import check, setting
from ..gating.gate import GateRouter, keep_pairs, room_for
from ..gating.settings import EXPERTS, JITTER, STD


@dataclass(frozen=True)
class Switch:
    """The expert of largest p = softmax(x W^T), with weight p; tokens above the capacity drop.

    A dropped token gets no expert.

    Raises: ConfigError for a setting out of range.
    Not for routing that must not depend on a token's place in the batch.
    """

    experts: int = setting(8, EXPERTS)
    capacity: float = setting(
        1.25,
        "The capacity factor c: in training an expert takes the first ceil(c T / E) of T tokens "
        "that choose it (section 2.2); in evaluation it takes all, so that a token's output "
        "does not depend on other tokens.",
        above=0,
        fix="1 leaves room for uniform routing; 1.25 is the paper's.",
    )
    std: float = setting(0.02, STD)
    jitter: float = setting(0.0, JITTER)
    balance: float = setting(
        0.01,
        "The coefficient of the balance loss (eq. 4), which counts dropped tokens too.",
        least=0,
        fix="Try 0.01.",
    )
    z: float = setting(
        0.001, "The coefficient of the z-loss (arXiv:2202.08906).", least=0, fix="Try 0.01."
    )

    def __post_init__(self) -> None:
        check(self)

    def build(self, width: int, *, generator: torch.Generator | None = None) -> SwitchRouter:
        return SwitchRouter(self, width, generator=generator)


class SwitchRouter(GateRouter[Switch]):
    """The router of `Switch`.  x: (..., width) -> Routing of shape (rows, E), at most one a row."""

    by_row = False

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, None]:
        p, index = logits.softmax(-1).topk(1)  # eq. 1 and 2, (N, 1)
        return index, p, None

    def limit(self, routing: Routing) -> Routing:
        """Drop, in training, each expert's last tokens above its capacity ceil(c T / E)."""
        if not self.training:
            return routing
        room = room_for(self.config.capacity, len(routing.expert), self.experts)  # eq. 3
        arrived = F.one_hot(routing.expert, self.experts).cumsum(0)  # (T, E)
        # number the tokens of each expert in the order of the batch
        place = arrived.gather(1, routing.expert[:, None])[:, 0]  # 1 for the first
        return keep_pairs(routing, place <= room)


CARD = Card(
    "switch",
    kind="router",
    config=Switch,
    paper=Paper(
        "2101.03961",
        2021,
        "Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient "
        "Sparsity",
    ),
    tags=frozenset({"sparse", "learned", "capacity"}),
    tiny={"experts": 4, "capacity": 1.0},
    summary="The one expert of largest probability, up to a capacity.",
    family="token choice",
    names=("Switch Transformer",),
)
