"""The base of all learned routers: padding, the newest routing, the load of each expert."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..core import Routing
from ..core.checks import between, whole
from ..core.errors import ConfigError, ShapeError
from .context import ReadsContext, steps_with, told_modules


class Router(ReadsContext, abc.ABC):
    """Chooses experts for rows.  x: (..., d) -> Routing of shape (rows, E).

    context: padding and ids of the batch; rows of padding get no expert and count in no loss.
    received: (2, E) float64, pairs and weight that each expert had since `forget`, in training, or
    inside `load.counting`; served: how many rows had an expert at all.
    normalised: the weights of a row that has experts sum to one, for all parameters.
    by_expert: names of the parameters and buffers that have a row for each expert and alone decide
    which experts there are; None where experts cannot come or go.
    equal_counts: every row has the same number of experts.

    Raises: ConfigError for less than one expert; ShapeError for padding of another batch.
    """

    by_expert: ClassVar[tuple[str, ...] | None] = None
    normalised: bool = False
    equal_counts: bool = False

    def __init__(self, experts: int) -> None:
        super().__init__()
        check_counts(experts)
        self.experts = experts
        # in training: the tokens of each expert, and the sum of their weights
        self.received = torch.zeros(2, experts, dtype=torch.float64)
        # tokens with an expert
        self.served = 0

    @property
    def last(self) -> Routing | None:
        """The routing of the newest forward in training; `aux_loss` adds up its losses."""
        return self.context.routings.get(self)

    @abc.abstractmethod
    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        """Return the routing of rows (N, d); valid: (N,) bool or None = all."""

    def forward(self, x: Tensor) -> Routing:
        """Choose experts for all tokens of x, (..., d); the batch's context has the padding."""
        # all leading axes are tokens
        rows = x.reshape(-1, x.shape[-1])
        return self.remember(self.route(rows, self._valid_rows(x)))

    def remember(self, routing: Routing) -> Routing:
        """Store a routing as the newest one and add it to the experts' load; return it.

        In evaluation it is not stored, and is added to the load only if context.counting is True.
        In training the load counts forwards with gradients.
        """
        if self.training:
            self.context.routings[self] = routing
        # recomputed forwards and graphs of torch.compile must not count a second time, and meta
        # tensors have no numbers to count
        counts = self.context.counting or (self.training and torch.is_grad_enabled())
        if counts and not routing.weight.is_meta and not torch.compiler.is_compiling():
            # tokens and weight of each expert, and how many tokens had any
            self.received += received(routing)
            self.served += served(routing)
        return routing

    def forget(self) -> None:
        """Count the load from 0 again."""
        self.received = torch.zeros_like(self.received)
        self.served = 0

    def _valid_rows(self, x: Tensor) -> Tensor | None:
        """Return the batch's padding mask for the N tokens of x, (N,) bool; None = no padding."""
        mask = self.context.valid
        if mask is None:
            return None
        valid = mask.to(x.device)
        # while generating with a cache, x has the newest tokens only
        if x.dim() > 2 and valid.shape[0] == x.shape[0] and valid.shape[1] > x.shape[1]:
            valid = valid[:, -x.shape[1] :]
        if valid.numel() != x[..., 0].numel():
            got = f"{tuple(mask.shape)} for {tuple(x.shape)}"
            fix = "Pass the mask of this very batch."
            raise ShapeError("attention mask", got=got, want="an entry for each token", fix=fix)
        return valid.reshape(-1)


def check_counts(experts: int, active: int = 1) -> None:
    """Raise ConfigError unless there is an expert, and `active` of them can be chosen."""
    whole("experts", experts, 1, "Try 4.")
    whole("active", active, fix="Try 1.")
    between("active", active, 1, experts, "Fewer active experts, or more experts.")


def check_renormalised(experts: int, active: int) -> None:
    """Raise ConfigError if a router with weights of sum 1 cannot learn with so many experts.

    experts: E; active: how many are chosen for each token, 1 to E. With one of several the weight,
    divided by its sum, is always 1, so that no gradient reaches the router.
    """
    check_counts(experts, active)
    if active == 1 < experts:
        got, want = "1, whose renormalised weight is 1 always", "a weight that teaches the router"
        raise ConfigError("active", got=got, want=want, fix="Use active=2 or more.")


@torch.no_grad()
def received(routing: Routing) -> Tensor:
    """Return the number of tokens and the sum of weights of each expert, (2, E) float64 on the CPU.

    routing: the pairs (token, expert), with weights.
    """
    pairs = routing.load().double()
    weight = pairs.new_zeros(routing.experts)
    weight.index_add_(0, routing.expert, routing.weight.double())
    return torch.stack([pairs, weight]).cpu()


@torch.no_grad()
def served(routing: Routing) -> int:
    """Return how many tokens have any expert.  routing: the pairs (token, expert) of N tokens."""
    has_expert = torch.zeros(routing.tokens, dtype=torch.bool, device=routing.token.device)
    has_expert[routing.token] = True
    return int(has_expert.sum())


def learned_routers(model: nn.Module) -> dict[str, Router]:
    """Return every learned router inside a model, by path."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Router)}


def aux_loss(model: nn.Module) -> Tensor:
    """Return the sum of all routers' losses of the newest forward in training, 0-dimensional.

    loss = criterion(model(x), y) + intarsia.gating.aux_loss(model)

    It is to be added to the task's loss; `fit` does so on its own. The losses are multiplied by
    their coefficients already. model: any module; without routers the result is 0.
    """
    # losses of several dtypes are added in float32
    # routings of an evaluation are not stored, so that only training counts
    newest = [router.last for router in learned_routers(model).values()]
    losses = [loss.float() for r in newest if r is not None for loss in r.losses.values()]
    return torch.stack(losses).sum() if losses else torch.zeros(())


def before_step(model: nn.Module, step: int, steps: int) -> None:
    """Tell every module that changes during training which step comes next.

    `fit` calls it before each training step; a loop of your own has to. model: any module; its
    modules with a method `before_step(step, steps)`, such as a gate with a falling temperature, are
    called. step: 0 ... steps - 1; steps: number of steps of the whole training. The step is also
    put into each `Context`.
    """
    for module in told_modules(model):
        if isinstance(module, ReadsContext):
            module.context.step = step
        if steps_with(module):
            cast(Any, module).before_step(step, steps)
