"""MoE-X: the experts that are expected to have the fewest active units (arXiv:2503.07639)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..gating.gate import GateRouter, best, wide_linear
from ..gating.reads_experts import Encoded, ReadsExperts
from ..gating.router import check_renormalised
from ..gating.settings import ACTIVE, BALANCE_OF_K, EXPERTS, Z

# of s^2: where it vanishes, neither the score nor its gradient may divide by 0
LEAST = 1e-24


@dataclass(frozen=True)
class MoeX:
    """The k experts of smallest expected share of active units, for each token.

    The h entries of column i of W_enc are taken as Gaussian, with mean mu_i and deviation sigma_i.
    A pre-activation is then about N(m, s^2) with m = sum_i x_i mu_i, s^2 = sum_i x_i^2 sigma_i^2,
    and the share (1 + erf(m / (sqrt 2 s))) / 2 of the units is above 0. The score of expert e is
    omega_e = -erf(m_e / (sqrt 2 s_e)). A bias is one more column, with the input 1. The weights of
    the k largest omega_e / tau are their softmax.

    The router has no weights of its own: the gradient goes through mu and sigma into W_enc. It
    takes stacked ReLU experts that differ, which the mixture shows it. Of gated experts,
    W_2 (ReLU(W_g x) * W_1 x), W_g is read. The statistics are computed at each forward; a token
    costs O(E d).

    Raises: ConfigError for a setting out of range: k above E, or one expert of several, as its
    weight would always be 1; and for experts that are equal, as copies are, or have no ReLU.
    Source: arXiv:2503.07639. After a layer norm the mean of x is near 0, hence m and the score,
    and routing is nearly even: a small tau, or learn=True, sharpens it. Not without a balance loss.
    """

    experts: int = setting(8, EXPERTS)
    active: int = setting(2, ACTIVE, fix="Try 2.")
    tau: float = setting(1.0, "The temperature that divides the scores.", above=0, fix="Try 1.")
    learn: bool = setting(False, "Whether the temperature is learned, as exp of a parameter.")
    balance: float = setting(0.01, BALANCE_OF_K)
    z: float = setting(0.0, Z)

    def __post_init__(self) -> None:
        check(self)
        check_renormalised(self.experts, self.active)

    def build(self, width: int, *, generator: torch.Generator | None = None) -> MoeXRouter:
        """Return a router that does not know the experts yet; `Mixture` passes them to its `see`.

        width: length of a token's vector. generator: unused, because the router has no weights.
        """
        return MoeXRouter(self, width)


class UnitMoments(NamedTuple):
    """Mean and variance of the units' weights, by expert and input: (E, d), of biases (E,)."""

    mean: Tensor
    variance: Tensor
    bias_mean: Tensor | None
    bias_variance: Tensor | None


class MoeXRouter(GateRouter[MoeX], ReadsExperts):
    """The router of `MoeX`.  x: (..., width) -> Routing of shape (rows, E), k experts a row.

    log_tau: (), a parameter if tau is learned.
    """

    by_expert = None  # the experts' own weights decide
    normalised = equal_counts = True

    def __init__(self, config: MoeX, width: int) -> None:
        """Prepare the temperature; the experts come later, by `see`."""
        super().__init__(config)
        self.width = width
        start = torch.tensor(math.log(config.tau))
        self.log_tau = nn.Parameter(start) if config.learn else None

    def see(self, experts: Encoded) -> None:
        """Remember the experts; the scores are computed from their first layers.

        Raises: ConfigError if they are equal, or not of the router's number and input width.
        """
        super().see(experts)
        weight, _ = self.encoder()
        e, _, d = weight.shape
        if (e, d) != (self.experts, self.width):
            got, want = f"{e} that read {d} numbers", f"{self.experts} that read {self.width}"
            raise ConfigError("experts", got=got, want=want, fix="Build the router for them.")
        if e == 1 or weight.is_meta:
            return
        with torch.no_grad():
            alike = all(bool((t == t[:1]).all()) for t in self.columns() if t is not None)
        # equal experts have equal scores and gradients, and would stay equal
        if alike:
            got = f"{e} equal ones, which have one score and stay equal"
            fix = "Use how='diversified' or how='slices' in place of copies."
            raise ConfigError("experts", got=got, want="experts that differ", fix=fix)

    def columns(self) -> UnitMoments:
        """Return mean and variance of the experts' first-layer weights, as they are now.

        They are taken over the h hidden units of an expert, for each of its d inputs: (E, d) both.
        """
        weight, bias = self.encoder()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        # mu and sigma^2 over the h units; correction 0, so that a single unit has variance 0
        variance, mean = torch.var_mean(weight.to(dtype), dim=1, correction=0)
        if bias is None:
            return UnitMoments(mean, variance, None, None)
        bias_variance, bias_mean = torch.var_mean(bias.to(dtype), dim=1, correction=0)
        return UnitMoments(mean, variance, bias_mean, bias_variance)

    def share(self, rows: Tensor) -> Tensor:
        """Return the share of hidden units that each expert is expected to activate.

        rows: tokens (N, d). Returns (N, E), 0 ... 1.
        """
        # P(pre-activation > 0) of a normal distribution: (1 + erf(m / (sqrt 2 s))) / 2
        return (1 - self.scores(rows)) / 2

    def scores(self, rows: Tensor) -> Tensor:
        """Return omega_e = -erf(m_e / (sqrt 2 s_e)), large where few units will be active.

        m_e and s_e are the mean and the standard deviation of expert e's pre-activations for a
        token, as predicted from the statistics of its weights; see `MoeX`.
        rows: tokens (N, d). Returns (N, E), -1 ... 1.
        """
        moments = self.columns()
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        m = wide_linear(wide, moments.mean, moments.bias_mean)  # (N, E)
        squared = wide_linear(wide.square(), moments.variance, moments.bias_variance)  # s^2
        return -torch.erf(m * (2 * squared.clamp(min=LEAST)).rsqrt())

    def logits(self, rows: Tensor) -> Tensor:
        tau = self.config.tau if self.log_tau is None else self.log_tau.exp()
        return self.scores(rows) / tau

    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, None]:
        return best(logits, self.config.active)


CARD = Card(
    "moe_x",
    kind="router",
    config=MoeX,
    paper=Paper("2503.07639", 2025, "Mixture of Experts Made Intrinsically Interpretable"),
    tags=frozenset({"sparse", "learned"}),
    tiny={"experts": 4, "learn": True},
    summary="The experts that are expected to have the fewest units on, read off their weights.",
    family="token choice",
    names=("MoE-X",),
)
