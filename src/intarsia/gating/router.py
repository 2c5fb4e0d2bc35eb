"""What all learned routers share: what they know beside their input, and what they keep."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core import Routing
from ..core.errors import ConfigError, ShapeError


class Router(nn.Module, abc.ABC):
    """Chooses experts for rows.  x: (..., d) -> Routing of shape (rows, E).

    valid: (B, T) bool, False = padding, whose rows get no expert and count in no loss; the host
    sets it before every forward from `attention_mask`.  task_ids: (B,) int64, see `task_ids`.
    last: the routing of the newest forward in training, None before; `aux_loss` reads it.
    received: (2, E) float64, pairs and weight that each expert had since `forget`, in training;
    served: how many rows had an expert at all.
    normalised: the weights of a row that has experts sum to one, whatever the parameters are.
    by_expert: names of the parameters and buffers that have a row for each expert and decide, with
    nothing else, what experts it has; None where experts cannot come or go.
    counting: count in evaluation, too, see `statistics.counting`.
    equal_counts: each row has as many experts as any other, whatever it holds.

    Raises: ConfigError for less than one expert; ShapeError where `valid` does not fit x.
    """

    by_expert: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, experts: int) -> None:
        super().__init__()
        check_counts(experts)
        self.experts = experts
        self.valid: Tensor | None = None
        self.task_ids: Tensor | None = None
        self.last: Routing | None = None
        self.received = torch.zeros(2, experts, dtype=torch.float64)
        self.served = 0
        self.normalised, self.counting, self.equal_counts = False, False, False

    @abc.abstractmethod
    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        """The routing of rows (N, d); valid: (N,) bool or None = all."""

    def forward(self, x: Tensor) -> Routing:
        rows = x.reshape(-1, x.shape[-1])
        return self.kept(self.route(rows, self._valid_rows(x)))

    def kept(self, routing: Routing) -> Routing:
        """The routing, remembered while training as the newest one, its load counted."""
        if self.training:
            self.last = routing
        counts = self.counting or (self.training and torch.is_grad_enabled())
        if counts and not routing.weight.is_meta and not torch.compiler.is_compiling():
            self.received += received(routing)
            self.served += served(routing)
        return routing

    def forget(self) -> None:
        """Count the load anew."""
        self.received = torch.zeros_like(self.received)
        self.served = 0

    def _valid_rows(self, x: Tensor) -> Tensor | None:
        if self.valid is None:
            return None
        valid = self.valid.to(x.device)
        # while generating with a cache, x has the newest tokens only
        if x.dim() > 2 and valid.shape[0] == x.shape[0] and valid.shape[1] > x.shape[1]:
            valid = valid[:, -x.shape[1] :]
        if valid.numel() != x[..., 0].numel():
            raise ShapeError(
                "attention mask", got=f"{tuple(self.valid.shape)} for {tuple(x.shape)}",
                want="an entry for each token", fix="Pass the mask of this very batch.",
            )  # fmt: skip
        return valid.reshape(-1)

    def __getstate__(self) -> dict[str, Any]:
        # a routing holds a graph, which cannot be copied
        return self.__dict__ | {"last": None, "valid": None, "task_ids": None}


def check_counts(experts: int, active: int = 1) -> None:
    """Raise ConfigError unless there is an expert, and `active` of them can be chosen."""
    if experts < 1:
        raise ConfigError("experts", got=experts, want="at least 1", fix="Try 4.")
    if not 1 <= active <= experts:
        raise ConfigError(
            "active", got=active, want=f"1 ... {experts} (experts)",
            fix="Fewer active experts, or more experts.",
        )  # fmt: skip


def check_renormalised(experts: int, active: int) -> None:
    """`check_counts`, and raise ConfigError where the weights of a token's experts say nothing."""
    check_counts(experts, active)
    if active == 1 < experts:
        raise ConfigError(
            "active", got="1, whose renormalised weight is 1 always",
            want="a weight that teaches the router", fix="Use active=2 or more.",
        )  # fmt: skip


@torch.no_grad()
def received(routing: Routing) -> Tensor:
    """Pairs and weight of each expert, (2, E) float64 on the CPU."""
    pairs = routing.load().double()
    weight = pairs.new_zeros(routing.experts)
    weight.index_add_(0, routing.expert, routing.weight.double())
    return torch.stack([pairs, weight]).cpu()


@torch.no_grad()
def served(routing: Routing) -> int:
    """How many rows have an expert."""
    some = torch.zeros(routing.tokens, dtype=torch.bool, device=routing.token.device)
    some[routing.token] = True
    return int(some.sum())


def learned_routers(model: nn.Module) -> dict[str, Router]:
    """Every learned router inside a model, by path."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Router)}


def set_valid(model: nn.Module, mask: Tensor | None) -> None:
    """Tell every router which tokens are real.  mask: (B, T), 0 or False = padding."""
    for router in learned_routers(model).values():
        router.valid = None if mask is None else mask.bool()


@contextmanager
def task_ids(model: nn.Module, ids: Tensor) -> Iterator[None]:
    """Inside, the samples of a batch are of these tasks.  ids: (B,) int64.

    Works for every host, whatever arguments its forward takes:
    `with intarsia.task_ids(model, ids): logits = model(images)`.
    Raises: ConfigError for ids that are no vector of whole numbers; the model's forward says which
    tasks it does not know.
    """
    if ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ConfigError(
            "task_ids", got=f"{ids.dtype} of shape {tuple(ids.shape)}",
            want="one whole number for each sample", fix="Count tasks from 0.",
        )  # fmt: skip
    routers = learned_routers(model).values()
    before = [router.task_ids for router in routers]
    ids = ids.detach().cpu()  # so that every layer can look at them without waiting for a device
    for router in routers:
        router.task_ids = ids
    try:
        yield
    finally:
        for router, old in zip(routers, before, strict=True):
            router.task_ids = old


def check_task_ids(model: nn.Module, batch: Tensor | None) -> None:
    """Raise ShapeError if a router was told of another number of samples than the batch has."""
    for router in learned_routers(model).values():
        if router.task_ids is None:
            continue
        # only here: asking for the length would fix it in an exported program
        samples = 0 if batch is None else len(batch)
        if len(router.task_ids) != samples:
            raise ShapeError(
                "task_ids", got=f"{len(router.task_ids)} for a batch of {samples}",
                want="one for each sample",
                fix="Repeat them as the samples are: ids.repeat_interleave(beams) for beams.",
            )  # fmt: skip


@contextmanager
def of_samples(model: nn.Module, chosen: Tensor) -> Iterator[None]:
    """Inside, the routers get some of the batch's samples.  chosen: (B,) bool, on the CPU."""
    routers = learned_routers(model).values()
    before = [(r.valid, r.task_ids) for r in routers]
    for router in routers:
        if router.valid is not None:
            router.valid = router.valid[chosen.to(router.valid.device)]
        if router.task_ids is not None:
            router.task_ids = router.task_ids[chosen]
    try:
        yield
    finally:
        for router, (valid, ids) in zip(routers, before, strict=True):
            router.valid, router.task_ids = valid, ids


def aux_loss(model: nn.Module) -> Tensor:
    """The sum of all routers' losses of the newest forward, by which a mixture balances its load.

    loss = criterion(model(x), y) + intarsia.aux_loss(model)

    The coefficients are those of the method's settings; 0 for a model without such losses. `fit`
    adds it by itself.
    """
    losses = [
        loss for router in learned_routers(model).values() if router.last is not None
        for loss in router.last.losses.values()
    ]  # fmt: skip
    return torch.stack([x.float() for x in losses]).sum() if losses else torch.zeros(())
