"""The activation gate of a mixture with a learned temperature (arXiv:2401.13875)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.schema import check, setting
from ..gating.gate import GateRouter, best, wide_linear
from ..gating.router import check_renormalised
from ..gating.settings import BALANCE_OF_K, EXPERTS, Z

# phi by name, as SoftmaxGaussianMoE has them
PHI: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"linear": lambda z: z, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "gelu": F.gelu}
)


@dataclass(frozen=True)
class ActivationGate:
    """The k experts of largest phi(x W^T) / tau + b, for each token, weighted by their softmax.

    Raises: ConfigError for a setting out of range: k above E, or one expert of several, as its
    weight would always be 1.
    Source: arXiv:2401.13875, with the estimator `SoftmaxGaussianMoE`. Not where choices must
    be hard from the start: logits of "sigmoid" and "tanh" are bounded by 1 / tau.
    """

    experts: int = setting(8, EXPERTS)
    active: int = setting(
        2,
        "The number k of a token's experts; E is the paper's gate, in which every token has "
        "every expert.",
        least=1,
        fix="Try 2.",
    )
    phi: str = setting(
        "sigmoid",
        'The function of the logits: "sigmoid", "tanh" or "gelu" (the activation gate), or '
        '"linear" (the dense-to-sparse gate), which only determines W / tau: (c W, c tau) is '
        "the same gate for every c > 0, and estimates of the two converge slower than any power "
        "of the number of samples.",
        choices=tuple(PHI),
    )
    tau: float = setting(
        1.0, "The first temperature, learned as exp of a parameter.", above=0, fix="Try 1."
    )
    bias: bool = setting(True, "Whether the gate has a bias b.")
    std: float = setting(
        0.02, "The standard deviation of the gate's first weights W.", least=0, fix="Try 0.01."
    )
    balance: float = setting(0.01, BALANCE_OF_K)
    z: float = setting(0.0, Z)

    def __post_init__(self) -> None:
        check(self)
        check_renormalised(self.experts, self.active)

    def build(self, width: int, *, generator: torch.Generator | None = None) -> ActivationRouter:
        return ActivationRouter(self, width, generator=generator)


class ActivationRouter(GateRouter[ActivationGate]):
    """The router of `ActivationGate`.  x: (..., width) -> Routing (rows, E), k experts a row.

    weight: W (E, width), beta_1 in the paper; bias: b (E,), beta_0; log_tau: ().
    """

    normalised = equal_counts = True

    def __init__(
        self, config: ActivationGate, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, width, generator=generator)
        # trained as a logarithm, so that tau stays above 0
        self.log_tau = nn.Parameter(torch.tensor(math.log(config.tau)))

    def logits(self, rows: Tensor) -> Tensor:
        """Return a score of each expert for each token, phi(x W^T) / tau + b.

        phi: the settings' activation; W (E, d), b (E,) and the temperature tau are trained.
        """
        scores = PHI[self.config.phi](wide_linear(rows, self.weight))  # phi(beta_1^T x), (N, E)
        scaled = scores / self.log_tau.to(scores.dtype).exp()
        return scaled if self.bias is None else scaled + self.bias

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, None]:
        return best(logits, self.config.active)


CARD = Card(
    "activation",
    kind="router",
    config=ActivationGate,
    paper=Paper(
        "2401.13875",
        2024,
        "Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?",
    ),
    tags=frozenset({"sparse", "learned"}),
    tiny={"experts": 4},
    summary="Top-k gating with an activation inside the softmax and a learned temperature.",
    family="token choice",
    names=("Activation gate", "Activation dense-to-sparse gate"),
)
