"""Tutel's cosine gate (arXiv:2206.03382): directions of experts in a small space of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.schema import check, setting
from ..gating.gate import GateRouter, best, check_width, uncast, wide_layer
from ..gating.router import check_counts
from ..gating.settings import ACTIVE, BALANCE_OF_K, EXPERTS, Z

LARGEST = 100.0  # 1 / tau


@dataclass(frozen=True)
class Cosine:
    """The k experts of largest p = softmax(cos(P x + b, s_e) / tau), for each token.

    Weights of several experts sum to 1; one expert has p_e.

    Raises: ConfigError for a setting out of range, such as k above E.
    Source: released code of arXiv:2206.03382, after arXiv:2204.09179; Swin V2's mixtures have it.
    Not where the length of a token says which expert it needs: the gate sees directions alone.
    """

    experts: int = setting(8, EXPERTS)
    active: int = setting(2, ACTIVE)
    width: int = setting(256, "The width of the space that P maps to.", least=1, fix="Try 256.")
    tau: float = setting(
        0.5,
        "The first temperature, which is learned and stays above 1 / 100.",
        above=1 / LARGEST,
        fix="Try 0.5.",
    )
    std: float = setting(
        0.01, "The standard deviation of the first directions s_e.", least=0, fix="Try 0.01."
    )
    balance: float = setting(0.01, BALANCE_OF_K)
    z: float = setting(0.0, Z)

    def __post_init__(self) -> None:
        check(self)
        check_counts(self.experts, self.active)

    def build(self, width: int, *, generator: torch.Generator | None = None) -> CosineRouter:
        return CosineRouter(self, width, generator=generator)


class CosineRouter(GateRouter[Cosine]):
    """The router of `Cosine`.  x: (..., width) -> Routing of shape (rows, E), k experts a row.

    project: P and b, U(-1 / sqrt(width), 1 / sqrt(width)) at first; directions: s (E, n);
    log_scale: log (1 / tau), (1,).
    """

    by_expert = ("directions",)
    equal_counts = True

    def __init__(
        self, config: Cosine, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config)
        # with one of several experts the weight is p, which is below 1
        self.normalised = config.active > 1 or config.experts == 1
        self.project = cast(nn.Linear, nn.utils.skip_init(nn.Linear, width, config.width))
        for parameter in self.project.parameters():
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5, generator=generator)
        self.directions = nn.Parameter(torch.empty(config.experts, config.width))
        nn.init.normal_(self.directions, std=config.std, generator=generator)
        self.log_scale = nn.Parameter(torch.tensor([-math.log(config.tau)]))

    def logits(self, rows: Tensor) -> Tensor:
        """Return cos(P x + b, s_e) / tau, (N, E), of each token x and each expert e.

        P, b: the trained map to n numbers; s_e (n,): expert e's trained direction; tau: trained.
        """
        check_width(rows, self.project.in_features)
        tokens = F.normalize(wide_layer(rows, self.project), dim=-1)  # (N, n)
        directions = F.normalize(self.directions.to(tokens.dtype), dim=-1)  # (E, n)
        scale = self.log_scale.to(tokens.dtype).clamp(max=math.log(LARGEST)).exp()
        # under autocast the cosine would be computed in half precision
        with uncast(rows.device):
            return tokens @ directions.T * scale

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the k best experts of each row and their weights, (N, k) both, and None."""
        if self.normalised:
            return best(logits, self.config.active)
        # one expert keeps its p: a renormalised weight would always be 1
        p, index = logits.softmax(-1).topk(1)
        return index, p, None


CARD = Card(
    "cosine",
    kind="router",
    config=Cosine,
    paper=Paper("2206.03382", 2022, "Tutel: Adaptive Mixture-of-Experts at Scale"),
    tags=frozenset({"sparse", "learned"}),
    tiny={"experts": 4, "width": 6},
    summary="The k experts with the nearest direction to a token's, in a small space.",
    family="token choice",
    names=("Cosine gate", "Cosine router"),
)
