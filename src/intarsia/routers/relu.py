"""ReLU routing, ReMoE (arXiv:2412.14711): the experts with a logit above 0, weighted by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..core import Card, Paper, Routing
from ..core.schema import check, setting
from ..gating.balance import balance
from ..gating.gate import GateRouter
from ..gating.layer_state import PassesState
from ..gating.router import check_counts
from ..gating.settings import EXPERTS, STD


@dataclass(frozen=True)
class ReMoe:
    """R(x) = ReLU(x W^T): as many experts as are above 0, with weights that do not sum to 1.

    The loss is lambda / T sum_t sum_e f_e R(x_t)_e, f_e = E / (k T) times the tokens of expert e:
    experts of many tokens are pushed down harder. lambda_i = lambda_{i-1} alpha^sign(S_target - S),
    with S the share of pairs of a token and an expert that are off, S_target = 1 - k / E.
    lambda changes before each step of `fit`; a loop of your own calls `gating.before_step`.

    Raises: ConfigError on a setting that cannot be.
    Source: paper, section 3, and released code.  A token may have no expert, and then adds nothing.
    Not for a fixed cost of each token, nor with a capacity: use `TopK` or `Switch`.
    """

    experts: int = setting(8, EXPERTS)
    active: int = setting(
        2,
        "The experts k of a token on average, to which an L1 loss drives the router.",
        least=1,
        fix="Try 1.",
    )
    coefficient: float = setting(
        1e-8, "The first coefficient lambda_0 of that L1 loss.", above=0, fix="The paper's is 1e-8."
    )
    factor: float = setting(
        1.2,
        "The factor alpha by which lambda grows while tokens have more than k experts and "
        "shrinks while they have fewer.",
        least=1,
        fix="The paper's is 1.2.",
    )
    std: float = setting(0.02, STD)

    def __post_init__(self) -> None:
        check(self)
        check_counts(self.experts, self.active)

    def build(self, width: int, *, generator: torch.Generator | None = None) -> ReMoeRouter:
        return ReMoeRouter(self, width, generator=generator)


class ReMoeRouter(GateRouter[ReMoe], PassesState):
    """The router of `ReMoe`.  x: (..., width) -> Routing (rows, E), 0 ... E experts a row.

    growth: n, () int64, lambda = lambda_0 alpha^n, the same in all routers of a model.
    seen: (2,) int64, pairs and rows since the last step.  Both are buffers, so that a resumed run
    has them, whole numbers in every dtype.
    """

    growth: Tensor
    seen: Tensor

    def __init__(
        self, config: ReMoe, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        """Draw the gate's W (E, width); the loss coefficient begins at its first value."""
        super().__init__(config, width, generator=generator)
        # the routers of one model: sparsity is measured over all of them
        self.layers = [self]
        # n in lambda = lambda_0 alpha^n; then pairs and rows since the last step
        self.register_buffer("growth", torch.tensor(0))
        self.register_buffer("seen", torch.tensor([0, 0]))

    def follow(self, first: Self, layer: int) -> None:
        """Make this the router of layer number `layer`, and share the list of all layers' routers.

        The coefficient lambda of the L1 loss follows the sparsity of all layers.
        """
        super().follow(first, layer)
        self.layers = [self] if first is self else [*first.layers, self]
        for router in self.layers:
            router.layers = self.layers

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return all experts, ReLU(x W^T) as their weights, and a mask of those above 0."""
        weight = logits.relu()  # (N, E)
        selected = ~(weight <= 0)  # a NaN is kept, so that it is seen
        index = torch.arange(self.experts, device=logits.device).expand_as(logits)
        return index, weight, selected

    def strength(self) -> Tensor:
        """Return lambda = lambda_0 alpha^n, the coefficient of the L1 loss.  () float64."""
        return self.config.coefficient * self.config.factor ** self.growth.double()

    def _losses(self, logits: Tensor, routing: Routing, valid: Tensor | None) -> dict[str, Tensor]:
        """Return the L1 loss, which makes tokens use fewer experts, and count them for lambda."""
        # logits: (N, E); valid: (N,) bool, False = padding, None = all rows are real
        weight = logits.relu()
        if torch.is_grad_enabled():
            # count pairs and rows of this forward for the next step's sparsity S
            real = torch.ones_like(weight[:, 0], dtype=torch.bool) if valid is None else valid
            pairs = ((weight > 0) & real[:, None]).sum()
            self.seen += torch.stack([pairs, real.sum()])
        spread = balance(weight, routing, valid) / self.config.active
        return {"l1": self.strength().to(spread.dtype) * spread}

    def before_step(self, step: int, steps: int) -> None:
        """Raise lambda if tokens had more than k experts since the last step, lower it otherwise.

        lambda is the weight of the loss on the sum of the experts' weights; the first layer's
        router sets it for all layers. S below is the share of pairs (token, expert) with weight 0.
        step, steps: unused; other routers need them.
        """
        if self is not self.layers[0]:
            return
        pairs, rows = torch.stack([r.seen.cpu() for r in self.layers]).double().unbind(1)  # (L,)
        share = (pairs / (rows * self.experts))[rows > 0].mean()  # 1 - S
        if share.isfinite():
            # S_target - S = (1 - k / E) - S
            sign = torch.sign(share - self.config.active / self.experts).long()
            # more pairs than k per token: a larger lambda, and the reverse
            for router in self.layers:
                router.growth += int(sign)
        for router in self.layers:
            router.seen.zero_()


CARD = Card(
    "relu",
    kind="router",
    config=ReMoe,
    paper=Paper(
        "2412.14711", 2024, "ReMoE: Fully Differentiable Mixture-of-Experts with ReLU Routing"
    ),
    tags=frozenset({"sparse", "learned"}),
    tiny={"experts": 8},
    summary="The experts with a logit above 0, as many as there are, weighted by it.",
    family="token choice",
    names=("ReMoE", "ReLU routing"),
    exceptions={
        "gives_one_expert_all": "the weight is ReLU(x W), not 1",
        "leaves_nobody_out_at_k_of_k": "k is an average that training reaches",
        "counts_a_logit_of_zero": "a logit of 0 is not above 0: such a token has no expert",
    },
)
