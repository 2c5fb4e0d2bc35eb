"""EvoMoE's dense-to-sparse gate (arXiv:2112.14397): all experts first, fewer as it cools."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Card, Paper, Routing
from ..core.checks import below_one, between
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..gating.balance import balance
from ..gating.gate import gated, of_real, wide_linear
from ..gating.random_source import RandomSource, seeded_by
from ..gating.router import Router
from ..gating.settings import EXPERTS

SHAPES = ("exponential", "linear")
WEIGHTS = ("renormalised", "plain", "gumbel")
STD = 0.02


@dataclass(frozen=True)
class EvoMoe:
    """The experts with p = softmax((x W^T + zeta) / tau) above a threshold, zeta ~ Gumbel.

    tau falls and the gate hardens by `gating.before_step`; without it all experts are trained.

    Raises: ConfigError for a setting out of range.
    Source: arXiv:2112.14397, section 3, and released code. Not for saving time from the first step:
    at high temperature all experts run.
    """

    experts: int = setting(8, EXPERTS)
    tau: tuple[float, float] = setting(
        (2.0, 0.3), "The first and the last temperature.", above=0, fix="Try (2.0, 0.3)."
    )
    shape: str = setting(
        "exponential",
        'The way in which tau falls: "exponential", first (last / first)^(s / D) at step s, or '
        '"linear".',
        choices=SHAPES,
    )
    until: float = setting(
        0.3, "The share D of the steps in which tau falls.", above=0, most=1, fix="Try 0.3."
    )
    hard_after: float | None = setting(
        0.3,
        "The share of the steps after which a token has its one best expert, without noise, not "
        "before tau has fallen; evaluation has that one from the start, as released. None = "
        "never: evaluation is then training without the noise, and has more experts than "
        "training had.",
        least=0,
        most=1,
        fix="Try 0.3.",
    )
    threshold: float = setting(
        1e-3,
        "The bound c on p, below 1 / E, so that each token has an expert.",
        least=0,
        fix="The paper's is 1e-3.",
    )
    weights: str = setting(
        "renormalised",
        'The weights of the active experts: "renormalised", softmax(x W^T)_e over their sum, '
        "through which no gradient goes, so that outputs keep their size as tau falls and the "
        'gate of a single expert still has a gradient; "plain", softmax(x W^T)_e, as released, '
        'with outputs that shrink as experts drop out; "gumbel", p_e.',
        choices=WEIGHTS,
    )
    balance: float = setting(
        0.01,
        "The coefficient of E^2 mean_e(mean g_e mean active_e), which evens out the load.",
        least=0,
        fix="Try 0.01.",
    )

    def __post_init__(self) -> None:
        """Check each setting, and that each token keeps an expert.  Raises: ConfigError."""
        check(self)
        if len(self.tau) != 2:
            raise ConfigError("tau", got=self.tau, want="two above 0", fix="Try (2.0, 0.3).")
        if self.threshold >= 1 / self.experts:
            want = f"0 ... 1 / {self.experts} (experts)"
            fix = "The paper's is 1e-3."
            raise ConfigError("threshold", got=self.threshold, want=want, fix=fix)

    def temperature(self, step: int, steps: int) -> float:
        """Return the softmax temperature tau of a training step.

        It goes from the first to the last of `config.tau` during the share `until` of the training.
        step: counted from 0; steps: number of steps of the training.
        """
        (first, last), share = self.tau, min(1.0, step / (self.until * steps))
        if self.shape == "linear":
            return first + (last - first) * share
        return first * (last / first) ** share

    def hard(self, step: int, steps: int) -> bool:
        """Return True if a token has only its one best expert at this step.

        step: counted from 0; steps: number of steps of the training.
        """
        return self.hard_after is not None and step >= max(self.hard_after, self.until) * steps

    def build(self, width: int, *, generator: torch.Generator | None = None) -> EvoMoeRouter:
        return EvoMoeRouter(self, width, generator=generator)


class EvoMoeRouter(Router):
    """The router of `EvoMoe`.  x: (..., width) -> Routing (rows, E), 1 ... E experts a row.

    clock: step and steps, (2,) int64, a buffer, so that a checkpoint has its temperature, in every
    dtype.  noise: the source of zeta, the same on every device.
    """

    clock: Tensor
    by_expert = ("weight",)

    def __init__(
        self, config: EvoMoe, width: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config.experts)
        self.config, self.normalised = config, config.weights == "renormalised"
        self.weight = nn.Parameter(torch.empty(config.experts, width))
        nn.init.normal_(self.weight, std=STD, generator=generator)
        self.noise = RandomSource(seeded_by(generator), self.context)
        # the step and the number of steps, which decide the temperature
        self.register_buffer("clock", torch.tensor([0, 1]))

    def before_step(self, step: int, steps: int) -> None:
        """Set the training step, from which the temperature follows.

        Raises: ConfigError for a step that is not in the training.
        """
        between("step", step, 0, steps - 1, fix="Count from 0.")
        self.clock.copy_(torch.tensor([step, steps]))

    def at(self) -> tuple[float, bool]:
        """Return the temperature now, and True if each token has one expert at this step."""
        step, steps = (0, 1) if self.clock.is_meta else self.clock.tolist()
        return self.config.temperature(step, steps), self.config.hard(step, steps)

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        """Choose the experts of each token; in training with Gumbel noise on the logits."""
        noise = rows.new_zeros(len(rows), 1)
        if self.training and not self.at()[1]:
            noise = self.noise.drawn(len(rows), self._gumbel).to(rows.device, non_blocking=True)
        if valid is None:
            return self._route(rows, noise)
        # noise was drawn for all rows, so that padding changes no token's noise
        return of_real(rows, valid, lambda real: self._route(real, noise[valid]))

    def _gumbel(self, rows: int) -> Tensor:
        """Draw zeta for `rows` tokens.  (rows, E)."""
        return self.noise.gumbel(rows, self.experts)

    def _route(self, rows: Tensor, noise: Tensor) -> Routing:
        """Choose the experts with a probability above the threshold, or the best one once hard."""
        tau, hard = self.at()
        hard = hard or (self.config.hard_after is not None and not self.training)
        # noise: Gumbel, zeta (N, E), or zeros (N, 1)
        logits = wide_linear(rows, self.weight)  # (N, E)
        p = ((logits + noise.to(logits.dtype)) / tau).softmax(-1)  # the DTS gate
        active = ~(p <= self.config.threshold)  # a NaN stays, so that it is seen
        if hard:
            active = F.one_hot(logits.argmax(-1), self.experts).bool()
        gates = (p if self.config.weights == "gumbel" else logits.softmax(-1)) * active
        if self.config.weights == "renormalised":
            # the sum has no gradient, so that the gate of a single expert still has one
            gates = gates / gates.detach().sum(-1, keepdim=True)
        routing = gated(gates, rows.dtype, active)
        if not (self.training and len(rows) and self.config.balance):
            return routing
        return replace(routing, losses={"balance": self.config.balance * balance(gates, routing)})


def anneal(model: nn.Module, step: int, steps: int) -> None:
    """Set the temperature of all `EvoMoe` routers of a model to its value at a training step.

    step: 0 ... steps - 1; steps: number of steps of the training. `fit` calls this on its own.
    Raises: ConfigError for a model without such routers, or a step that is not in the training.
    """
    routers = [module for module in model.modules() if isinstance(module, EvoMoeRouter)]
    if not routers:
        name, got = "anneal", "a model without EvoMoe routers"
        raise ConfigError(name, got=got, want="one at least", fix="Use it with router=EvoMoe(...).")
    for router in routers:
        router.before_step(step, steps)


def diversify_(experts: Iterable[nn.Module], fraction: float, generator: torch.Generator) -> None:
    """Set a random part of the entries of each expert's matrices to 0, in place.

    experts: copies of one trained expert, which differ afterwards, so that a gate can distinguish
      them (section 3.2); fraction: the share of entries that is set to 0; generator: chooses them.
    Raises: ConfigError unless 0 <= fraction < 1.
    """
    matrices = (w for expert in experts for w in expert.parameters() if w.dim() > 1)
    drop_entries(matrices, fraction, generator)


@torch.no_grad()
def drop_entries(weights: Iterable[Tensor], fraction: float, generator: torch.Generator) -> None:
    """Set a random part of the entries of each weight to 0, in place.

    weights: changed in place; fraction: the share that is set to 0; generator: chooses the entries,
    on the CPU.
    Raises: ConfigError unless 0 <= fraction < 1.
    """
    below_one("fraction", fraction)
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
    summary="All experts first; as the temperature falls, those with little probability leave.",
    family="token choice",
    names=("EvoMoE", "DTS", "DTS gate", "Dense-to-sparse gate"),
)
