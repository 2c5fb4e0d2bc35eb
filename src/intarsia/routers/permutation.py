"""Which leaf feeds which expert: COMET's permutation search, around any gate (arXiv:2306.02824)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Card, Paper, Routing
from ..core.errors import ConfigError
from ..core.registry import card
from ..core.schema import check, setting
from ..gating.gate import gated, of_real, wide_linear
from ..gating.parts import PartsRouter
from ..gating.random_source import RandomSource, seeded_by
from ..gating.router import Router
from ..gating.settings import RouterConfig

ROUNDS = (20, 150)  # of Sinkhorn's normalisation, at the first and at the last step


def _comet() -> RouterConfig:
    return card("comet").config()  # routers do not import each other


@dataclass(frozen=True)
class PermutationSearch:
    """g P for a gate g, with P = Sinkhorn(M / tau) for N_p steps, then a permutation.

    P is doubly stochastic, (E, E); tau falls from `start` to `end`, on a log scale, and at step
    N_p the Hungarian method makes P a permutation for the rest of the run (the paper's local
    search), which only relabels experts. `gating.before_step` moves it on; the step and the
    permutation found are in the checkpoint.

    Not where a step must be cheap from the start: while it searches, every expert has a weight for
    every token, as in a dense mixture.
    Raises: ConfigError for a setting out of range.
    Source: arXiv:2306.02824, local search.
    During the search every expert has a weight for every token: a step costs a dense mixture.
    """

    gate: RouterConfig = setting(help="The settings of the gate g, of any router.", factory=_comet)
    steps: int = setting(
        100,
        "The steps N_p of the search, 1 to 10 % of a training in the paper.",
        least=1,
        fix="Use the gate alone for no search.",
    )
    start: float = setting(1e-3, "The temperature tau at the first step.", above=0, fix="Try 1e-3.")
    end: float = setting(
        1e-7,
        "The temperature tau at the last step of the search, at most `start`.",
        above=0,
        fix="Try 1e-7.",
    )
    entropy: float = setting(
        1e-4,
        "The coefficient of the entropies of P's rows and columns while it is sought.",
        least=0,
        fix="Try 1e-4.",
    )
    noise: float = setting(
        0.0,
        "The size of the Gumbel noise on M in each forward of the search in training, so that "
        "other permutations are tried; 0 in all released settings.",
        least=0,
        fix="Try 0.01.",
    )
    per_part: bool = setting(
        False,
        "Whether each part of a gate that has parts (COMET, DSelect-k) has its own permutation.",
    )

    def __post_init__(self) -> None:
        """Check each setting; building the router once checks the gate.  Raises: ConfigError."""
        check(self)
        if self.end > self.start:
            got = f"{self.start}, {self.end}"
            fix = "Try 1e-3 and 1e-7."
            raise ConfigError("start, end", got=got, want="0 < end <= start", fix=fix)
        self.build(1, generator=torch.Generator())  # the router checks the gate

    @property
    def experts(self) -> int:
        """E, the gate's."""
        return self.gate.experts

    def build(self, width: int, *, generator: torch.Generator | None = None) -> PermutationRouter:
        """Build the gate and a router around it that searches an order of its experts.

        width: length of a token's vector; generator: source of the random weights.
        Raises: ConfigError for a gate without weights, such as a random draw.
        """
        generator = seeded_by(None) if generator is None else generator
        generator = seeded_by(None) if generator is None else generator
        gate = self.gate.build(width, generator=generator)
        if not isinstance(gate, Router):
            fix = "Pass Comet(), TopK() or the like; a random draw has nothing to permute."
            raise ConfigError("gate", got=type(gate).__name__, want="a router with a gate", fix=fix)
        return PermutationRouter(self, gate, generator=generator)


class PermutationRouter(Router):
    """The router of `PermutationSearch`.  x: (..., width) -> Routing of shape (rows, E).

    scores: M (k, E, E), U(-0.05, 0.05) at first, k = 1 unless each part has its own.
    step: () int64.  order: (k, E) int64, the expert of each leaf, -1 while it is sought.
    Raises: ConfigError for `per_part` with a gate that has no parts.
    """

    step: Tensor
    order: Tensor

    def __init__(
        self, config: PermutationSearch, gate: Router, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(gate.experts)
        if config.per_part and not isinstance(gate, PartsRouter):
            name, got = "per_part", f"a {type(config.gate).__name__} gate, which has no parts"
            raise ConfigError(name, got=got, want="Comet or DSelectK", fix="Leave per_part=False.")
        self.config, self.gate, self.normalised = config, gate, gate.normalised
        count = gate.active if config.per_part and isinstance(gate, PartsRouter) else 1
        self.scores = nn.Parameter(torch.empty(count, gate.experts, gate.experts))
        nn.init.uniform_(self.scores, -0.05, 0.05, generator=generator)
        self.noise = RandomSource(seeded_by(generator), self.context)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("order", torch.full((count, gate.experts), -1))
        self.read_buffers()

    def read_buffers(self) -> None:
        """Copy the progress of the search from buffers to Python numbers.

        Reading a buffer in each forward would wait for the device.
        """
        self._done = min(1.0, int(self.step) / self.config.steps)
        self._is_final = bool((self.order >= 0).all())

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.read_buffers()

    @property
    def is_final(self) -> bool:
        """True if the search is over, and P is a permutation."""
        return self._is_final

    def before_step(self, step: int, steps: int) -> None:
        """Continue the search at a training step; at step N_p, choose the permutation for good.

        step: counted from 0; N_p is `config.steps`. steps: unused; other routers need the length of
          the training.
        """
        if self._is_final:
            return
        self.step.fill_(step)
        self._done = min(1.0, step / self.config.steps)
        if step >= self.config.steps:
            # the Hungarian method turns the soft permutation into a real one
            plan = self.soft(noisy=False).detach().cpu()
            self.order.copy_(torch.stack([hungarian(p) for p in plan]))
            self._is_final = True

    def soft(self, *, noisy: bool = True) -> Tensor:
        """Return the soft permutations P of the current step, (k, E, E) float64.

        P = Sinkhorn(M / tau): rows and columns sum to 1; the lower the temperature tau, the nearer
        P is to a permutation. M (k, E, E) is trained. noisy: add Gumbel noise to M while training.
        """
        # tau of 1e-7 asks for more digits than float32 has
        tau = self.config.start * (self.config.end / self.config.start) ** self._done
        rounds = round(ROUNDS[0] + (ROUNDS[1] - ROUNDS[0]) * self._done)
        scores = self.scores.double()
        if self.config.noise and noisy and self.training:
            scores = scores + self.config.noise * self._gumbel().to(scores)
        return sinkhorn(scores / tau, rounds)

    def _gumbel(self) -> Tensor:
        """Draw Gumbel noise for the scores of the permutations of E experts: M, (k, E, E)."""
        # a draw for each copy of the batch (`passes`); all copies use the first
        passes, shape = self.context.passes, self.scores.shape
        return self.noise.drawn(passes, lambda n: self.noise.gumbel(n, *shape))[0]

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        """Route rows by the gate, then permute its experts: softly by P, or by the order found."""
        if self.config.per_part:
            if valid is not None:
                return of_real(rows, valid, lambda real: self.route(real, None))
            return self._route_parts(rows)
        gate_routing = self.gate.route(rows, valid)
        if self._is_final:  # P only relabels the experts: no dense mixture any more
            routing = replace(gate_routing, expert=self.order[0][gate_routing.expert])
            return self._with_losses(routing, gate_routing.losses, None)
        plan = self.soft()
        gates = wide_linear(gate_routing.dense(), plan[0].T)
        routing = replace(gated(gates, rows.dtype), state=gate_routing.state)
        return self._with_losses(routing, gate_routing.losses, plan)

    def _route_parts(self, rows: Tensor) -> Routing:
        """Route rows by a gate of several parts (trees, selectors), each with a permutation."""
        assert isinstance(self.gate, PartsRouter)
        parts, losses = self.gate.parts(rows)  # (N, k, E)
        losses = losses if self.training and len(rows) else {}
        if self._is_final:
            # argsort inverts the order: which leaf feeds each expert
            gates = parts.gather(2, self.order.argsort(-1).expand_as(parts)).sum(1)
            return self._with_losses(gated(gates, rows.dtype), losses, None)
        plan = self.soft()
        gates = wide_linear(parts.flatten(1), plan.flatten(0, 1).T)  # sum over parts
        return self._with_losses(gated(gates, rows.dtype), losses, plan)

    def _with_losses(
        self, routing: Routing, losses: Mapping[str, Tensor], plan: Tensor | None
    ) -> Routing:
        """Return the routing with the gate's losses and, in training, one for the permutations."""
        if not self.training:
            return replace(routing, losses=losses)
        # 0 after the search: data-parallel training waits for a gradient of every parameter
        loss = 0 * self.scores.sum()
        # None: the search has ended
        if plan is not None:
            # rows and columns have the same entries
            loss = loss + self.config.entropy * 2 * -(plan * (plan + 1e-6).log()).sum()
        return replace(routing, losses={**losses, "permutation": loss.to(self.scores.dtype)})


def sinkhorn(scores: Tensor, rounds: int) -> Tensor:
    """Divide columns and rows of exp(scores) by their sums in turn.  (..., E, E), same shape.

    Rows come last, so that they sum to 1 exactly, columns as nearly as the rounds allow.
    """
    # in logarithms, because exp(M / tau) overflows at a small tau
    for _ in range(rounds):
        scores = scores - scores.logsumexp(-2, keepdim=True)
        scores = scores - scores.logsumexp(-1, keepdim=True)
    return scores.exp()


def hungarian(plan: Tensor) -> Tensor:
    """Return the permutation that maximises sum_i P[i, order[i]].

    plan: P (E, E), on the CPU. Returns order (E,) int64.
    """
    from scipy.optimize import linear_sum_assignment  # here, as it takes a third of a second

    return torch.from_numpy(linear_sum_assignment(plan.numpy(), maximize=True)[1])


def search_step(model: nn.Module, step: int, steps: int | None = None) -> None:
    """Set the training step of all permutation searches in a model.

    step: counted from 0; steps: number of steps of the training, which the search does not use;
      None = step.
    """
    for module in model.modules():
        if isinstance(module, PermutationRouter):
            module.before_step(step, step if steps is None else steps)


CARD = Card(
    "permutation",
    kind="router",
    config=PermutationSearch,
    paper=Paper(
        "2306.02824",
        2023,
        "COMET: Learning Cardinality Constrained Mixture of Experts with Trees and Local Search",
    ),
    tags=frozenset({"learned"}),
    summary="A search for which leaf of a gate feeds which expert, around any gate.",
    family="differentiable selection",
    names=("Permutation local search",),
)
