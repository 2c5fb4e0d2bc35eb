"""EvoMoE's dense-to-sparse gate (arXiv:2112.14397): all experts first, fewer as it cools."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, Paper, Routing
from ..core.errors import ConfigError
from ..gating.balance import balance
from ..gating.gate import keep_pairs, of_real, wide_linear
from ..gating.random_source import RandomSource
from ..gating.router import Router, before_step, check_counts

SHAPES = ("exponential", "linear")
WEIGHTS = ("renormalised", "plain", "gumbel")
STD = 0.02


@dataclass(frozen=True)
class EvoMoe:
    """The experts whose p = softmax((x W^T + zeta) / tau) is above a threshold, zeta ~ Gumbel.

    experts: E; tau: the first and the last temperature; shape: how it falls, "exponential",
    first (last / first)^(s / D), or "linear"; until: D, as a share of the steps; hard_after: the
    share of the steps after which a token has its one best expert, without noise, None = never;
    threshold: c, below 1 / E, so that each token has an expert.
    weights: of the active experts,
      "renormalised", softmax(x W^T)_e over their sum, whose gradient is left out: outputs keep
        their size as tau falls, and an expert that is alone still teaches the gate;
      "plain", softmax(x W^T)_e, as released: outputs shrink as experts drop out;
      "gumbel", p_e.
    balance: coefficient of E^2 mean_e(mean g_e mean active_e).

    Noise is there while training only. Nothing else differs in evaluation: the release switches to
    the one best expert there, which was not trained to be alone. The schedule moves by
    `intarsia.fit(..., schedule=routers.anneal)`; without it tau stays at the first.

    Raises: ConfigError on a setting that cannot be.
    Source: arXiv:2112.14397, section 3, and released code. Not for saving time from the first step:
    at high temperature all experts run.
    """

    experts: int = 8
    tau: tuple[float, float] = (2.0, 0.3)
    shape: str = "exponential"
    until: float = 0.3
    hard_after: float | None = None
    threshold: float = 1e-3
    weights: str = "renormalised"
    balance: float = 0.01

    def __post_init__(self) -> None:
        check_counts(self.experts)
        if len(self.tau) != 2 or not all(t > 0 for t in self.tau):
            raise ConfigError("tau", got=self.tau, want="two above 0", fix="Try (2.0, 0.3).")
        if not 0 < self.until <= 1:
            raise ConfigError("until", got=self.until, want="0 < D <= 1", fix="Try 0.3.")
        if self.hard_after is not None and not 0 <= self.hard_after <= 1:
            raise ConfigError("hard_after", got=self.hard_after, want="0 ... 1", fix="Try 0.5.")
        if not 0 <= self.threshold < 1 / self.experts:
            raise ConfigError(
                "threshold", got=self.threshold, want=f"0 ... 1 / {self.experts} (experts)",
                fix="The paper's is 1e-3.",
            )  # fmt: skip
        if not self.balance >= 0:
            raise ConfigError("balance", got=self.balance, want="0 or more", fix="Try 0.01.")
        for what, allowed in (("shape", SHAPES), ("weights", WEIGHTS)):
            if getattr(self, what) not in allowed:
                got = repr(getattr(self, what))
                raise ConfigError(what, got=got, want=f"one of {allowed}", fix="Pick one.")

    def temperature(self, step: int, steps: int) -> float:
        """tau at a step of so many."""
        (first, last), share = self.tau, min(1.0, step / (self.until * steps))
        if self.shape == "linear":
            return first + (last - first) * share
        return first * (last / first) ** share

    def hard(self, step: int, steps: int) -> bool:
        """Has each token its one best expert at a step of so many?"""
        return self.hard_after is not None and step >= self.hard_after * steps

    def build(self, width: int, *, generator: torch.Generator) -> EvoMoeRouter:
        return EvoMoeRouter(self, width, generator=generator)


class EvoMoeRouter(Router):
    """The router of `EvoMoe`.  x: (..., width) -> Routing (rows, E), 1 ... E experts a row.

    clock: step and steps, (2,) int64, a buffer: a checkpoint has the temperature it was saved at,
    in every dtype.  noise: zeta comes from it, the same on every device.
    """

    clock: Tensor
    by_expert = ("weight",)

    def __init__(self, config: EvoMoe, width: int, *, generator: torch.Generator) -> None:
        super().__init__(config.experts)
        self.config, self.normalised = config, config.weights == "renormalised"
        self.weight = nn.Parameter(torch.empty(config.experts, width))
        nn.init.normal_(self.weight, std=STD, generator=generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        self.noise = RandomSource(torch.Generator().manual_seed(seed), self.context)
        self.register_buffer("clock", torch.tensor([0, 1]))

    def before_step(self, step: int, steps: int) -> None:
        """Set the clock.  Raises: ConfigError for a step that is not in the run."""
        if not 0 <= step < steps:
            raise ConfigError(
                "step", got=f"{step} of {steps}", want="a step of the run", fix="Count from 0."
            )
        self.clock.copy_(torch.tensor([step, steps]))

    def at(self) -> tuple[float, bool]:
        """tau, and whether each token has one expert only, by the clock."""
        step, steps = (0, 1) if self.clock.is_meta else self.clock.tolist()
        return self.config.temperature(step, steps), self.config.hard(step, steps)

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        noise = rows.new_zeros(len(rows), 1)
        if self.training and not self.at()[1]:
            noise = self.noise.drawn(len(rows), self._gumbel).to(rows.device, non_blocking=True)
        if valid is None:
            return self._chosen(rows, noise)
        return of_real(rows, valid, lambda real: self._chosen(real, noise[valid]))

    def _gumbel(self, rows: int) -> Tensor:
        uniform = self.noise.uniform(rows, self.experts)
        return -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()

    def _chosen(self, rows: Tensor, noise: Tensor) -> Routing:
        tau, hard = self.at()
        logits = wide_linear(rows, self.weight)  # (N, E)
        p = ((logits + noise.to(logits.dtype)) / tau).softmax(-1)
        active = ~(p <= self.config.threshold)  # a NaN is kept, so that it is seen
        if hard:
            active = F.one_hot(logits.argmax(-1), self.experts).bool()
        gates = (p if self.config.weights == "gumbel" else logits.softmax(-1)) * active
        if self.config.weights == "renormalised":
            gates = gates / gates.detach().sum(-1, keepdim=True)
        index = torch.arange(self.experts, device=rows.device).expand_as(gates)
        whole = Routing.from_topk(index, gates.to(rows.dtype), self.experts)
        routing = keep_pairs(whole, active.flatten())
        if not (self.training and len(rows) and self.config.balance):
            return routing
        return replace(routing, losses={"balance": self.config.balance * balance(gates, routing)})


def anneal(model: nn.Module, step: int, steps: int) -> None:
    """`gating.before_step`, for a model with an `EvoMoe` router.

    Raises: ConfigError for a model that has none, or a step that is not in the run.
    """
    if not any(isinstance(module, EvoMoeRouter) for module in model.modules()):
        raise ConfigError(
            "anneal",
            got="a model without EvoMoe routers",
            want="one at least",
            fix="Use it with router=EvoMoe(...).",
        )
    before_step(model, step, steps)


def diversify_(experts: Iterable[nn.Module], fraction: float, generator: torch.Generator) -> None:
    """Set a random part of the entries of each expert's matrices to 0, each expert's its own.

    What one expert has learned becomes E that differ, which a gate can tell apart (section 3.2).
    Raises: ConfigError unless 0 <= fraction < 1.
    """
    matrices = (w for expert in experts for w in expert.parameters() if w.dim() > 1)
    drop_entries(matrices, fraction, generator)


@torch.no_grad()
def drop_entries(weights: Iterable[Tensor], fraction: float, generator: torch.Generator) -> None:
    """Set a random part of the entries of each weight to 0, in place.

    Raises: ConfigError unless 0 <= fraction < 1.
    """
    if not 0 <= fraction < 1:
        raise ConfigError("fraction", got=fraction, want="0 <= f < 1", fix="Try 0.1.")
    for weight in weights:
        keep = torch.rand(weight.shape, generator=generator) >= fraction
        weight.mul_(keep.to(weight.device))


CARD = Card(
    "evomoe",
    kind="router",
    config=EvoMoe,
    paper=Paper(
        "2112.14397",
        2021,
        "EvoMoE: An Evolutional Mixture-of-Experts Training Framework via Dense-To-Sparse Gate",
    ),
    tags=frozenset({"learned", "stochastic"}),
    tiny={"experts": 4, "weights": "gumbel"},
    summary="All experts first; as the temperature falls, those whose probability drops leave.",
    family="token choice",
    names=("EvoMoE", "DTS", "DTS gate", "Dense-to-sparse gate"),
)
