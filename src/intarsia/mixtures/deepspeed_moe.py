"""PR-MoE of DeepSpeed-MoE (arXiv:2201.05596): experts next to an MLP, more in later layers.

Its Mixture-of-Students: `intarsia.experts.student_of` and `intarsia.train.distill`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..gating.settings import BALANCE
from ..routers import TopK
from .capacity import POLICIES, Capacity
from .experts import StackedExperts
from .mixture import MIXES, Mixture, ResidualMixture


@dataclass(frozen=True)
class DeepSpeedMoE:
    """c_1 p_e expert_e(x) + c_2 mlp(x), e the expert of largest p = softmax(x W^T).

    `intarsia.upcycle(model, pr.router, experts=pr.experts, capacity=pr.capacity, residual=pr.mix)`
    puts it into a model.

    Not in a decoder with another policy than "order": experts would depend on later tokens.
    Raises: ConfigError on a setting that cannot be.
    Source: arXiv:2201.05596, section 4.1, and released code.
    """

    experts: Sequence[int] = setting(
        (32,) * 10 + (64,) * 2,
        "The number of experts of each layer, first to last: a pyramid where later ones have "
        "more (section 4.1: 32, and 64 in the last two of twelve).",
        least=1,
        fix="Try 4.",
    )
    mix: str = setting(
        "learned",
        'The shares c of experts and MLP: "learned", a softmax for each token (released code), '
        'or "sum", both 1 (paper).',
        choices=MIXES,
    )
    factor: float = setting(
        1.0,
        "The capacity factor c in training, where an expert takes max(ceil(c T / E), least) of "
        "the T tokens.",
        above=0,
        fix="1 leaves room for uniform routing, E or more drops nothing.",
    )
    evaluation: float | None = setting(
        1.0,
        "The capacity factor in evaluation; None = an expert takes all.",
        above=0,
        fix="1 leaves room for uniform routing, E or more drops nothing.",
    )
    least: int = setting(
        4, "The tokens that an expert has room for at least.", least=1, fix="4 is DeepSpeed's."
    )
    balance: float = setting(0.01, BALANCE)
    policy: str = setting(
        "order",
        'The tokens of a full expert that stay, as in `Capacity`. "random" is the released '
        'default, also in evaluation there; "order", the first ones, is ours, since it is the '
        'only one under which no token of a decoder depends on later ones; "score", the ones '
        "of largest weight.",
        choices=POLICIES,
    )

    def __post_init__(self) -> None:
        """Check the settings, and that a layer has experts.  Raises: ConfigError."""
        check(self)
        if not self.experts:
            raise ConfigError("experts", got="none", want="a number for each layer", fix="Try 4.")

    @property
    def router(self) -> TopK:
        """The first layer's router settings; other layers differ in the number of experts alone."""
        return self._router(self.experts[0])

    def _router(self, experts: int) -> TopK:
        return TopK(experts, 1, "prob", balance=self.balance)

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.factor, self.policy, self.least, self.evaluation)

    def build(
        self, width: int, hidden: int, layer: int = 0, *, generator: torch.Generator
    ) -> ResidualMixture:
        """Build the mixture of one layer: experts, as many as the layer has, and an MLP.

        width, hidden: sizes of each expert, an MLP width -> hidden -> width, and of the MLP next to
          them; layer: the layer's number in `experts`, from 0; generator: the source of first
          weights.
        """
        count = self.experts[layer]
        experts = StackedExperts(count, width, hidden, bias=True, generator=generator)
        router = self._router(count).build(width, generator=generator)
        mixture = Mixture(experts, router, capacity=self.capacity, generator=generator)
        mlp = StackedExperts(1, width, hidden, bias=True, generator=generator)
        return ResidualMixture(
            mixture, SharedMlp(mlp), width=width, mix=self.mix, generator=generator
        )


class SharedMlp(nn.Module):
    """An MLP that every token passes.  (..., d) -> (..., out)."""

    def __init__(self, mlp: StackedExperts) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """Apply the one MLP to every token.  x: (..., d) -> (..., out)."""
        y = self.mlp.every(x.reshape(-1, x.shape[-1]))[:, 0]
        return y.view(*x.shape[:-1], y.shape[-1])


CARD = Card(
    "deepspeed_moe",
    kind="mixture",
    config=DeepSpeedMoE,
    paper=Paper(
        "2201.05596",
        2022,
        "DeepSpeed-MoE: Advancing Mixture-of-Experts Inference and Training to Power "
        "Next-Generation AI Scale",
    ),
    tiny={"experts": (2, 4), "least": 8},
    summary="One expert a token next to an MLP for all, more experts in later layers; students.",
    family="mixture layers",
    names=("DeepSpeed-MoE", "PR-MoE", "Pyramid-Residual MoE", "Mixture of Students"),
)
