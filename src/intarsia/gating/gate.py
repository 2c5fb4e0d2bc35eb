"""The common part of gates: logits in float32, jitter while training, losses."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Routing
from ..core.errors import ShapeError
from .balance import balance, z_loss
from .router import Router
from .settings import RouterConfig

C = TypeVar("C", bound=RouterConfig)


class GateRouter(Router, Generic[C]):
    """p = softmax(x W^T + b), from which a subclass chooses.  x: (..., d) -> Routing (rows, E).

    A subclass says how `choose` takes experts, and may have `logits` of its own instead of W, b.
    While training, x is multiplied by U(1 - jitter, 1 + jitter), in a copy, drawn as dropout is;
    losses "balance" and "z" are there. A config without one of these settings has it at 0.
    by_row: a row's experts depend on that row alone, so that a graph of `torch.compile`, which has
    a fixed number of pairs, may give padding pairs of weight 0.
    """

    by_expert = ("weight", "bias")
    by_row: ClassVar[bool] = True

    def __init__(
        self, config: C, width: int | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        """Draw the gate's weight W (E, width) at random; set its bias, if it has one, to 0."""
        super().__init__(config.experts)
        self.config = config
        settings = {f.name: getattr(config, f.name) for f in fields(cast(Any, config))}
        self.jitter, self.balance, self.z = (
            settings.get(n, 0.0) for n in ("jitter", "balance", "z")
        )
        # no weight: a subclass has other logits
        if width is None:
            return
        self.weight = nn.Parameter(torch.empty(config.experts, width))
        nn.init.normal_(self.weight, std=settings.get("std", 0.02), generator=generator)
        self.bias = nn.Parameter(torch.zeros(config.experts)) if settings.get("bias") else None

    def logits(self, rows: Tensor) -> Tensor:
        """Return the logits of rows, float32 or better, also under autocast.  (N, d) -> (N, E)."""
        return wide_linear(rows, self.weight, self.bias)

    @abc.abstractmethod
    def choose(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Choose k experts for each row by its logits.

        logits: (N, E). Returns the numbers of the experts and their weights, (N, k) both, and a
        mask (N, k) bool of the choices that count; None = all count.
        """

    def limit(self, routing: Routing) -> Routing:
        """Drop pairs above a capacity, after the losses were computed from all; here none."""
        return routing

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        """Choose experts for each token by its logits; in training, add noise, and compute losses.

        rows: (N, d), tokens; valid: (N,) bool, False = padding, which gets no expert; None = no
        padding. The losses see all chosen pairs; pairs above a capacity are dropped after that.
        """
        # a compiled graph has a fixed number of pairs: padding keeps its pairs, with weight 0
        if valid is not None and not (self.by_row and torch.compiler.is_compiling()):
            return of_real(rows, valid, lambda real: self.route(real, None))
        x = rows
        if self.training and self.jitter:
            low, high = 1 - self.jitter, 1 + self.jitter
            x = rows.to(torch.promote_types(rows.dtype, torch.float32))  # 1 + 0.001 is 1 in bf16
            x = x * torch.empty_like(x).uniform_(low, high)
        logits = self.logits(x)
        index, weight, counts = self.choose(logits)
        if valid is not None:
            weight = torch.where(valid[:, None], weight, 0)
        all_pairs = Routing.from_topk(index, weight.to(rows.dtype), self.experts)
        routing = all_pairs if counts is None else keep_pairs(all_pairs, counts.flatten())
        # the losses see every pair; the capacity drops some after that
        losses = self._losses(logits, routing, valid) if self.training and len(rows) else {}
        return replace(self.limit(routing), losses=losses)

    def _losses(self, logits: Tensor, routing: Routing, valid: Tensor | None) -> dict[str, Tensor]:
        """Return the auxiliary losses times their coefficients, by name ("balance", "z")."""
        # logits: (N, E); valid: (N,) bool, False = padding, None = no padding
        losses: dict[str, Tensor] = {}
        if self.balance:
            losses["balance"] = self.balance * balance(logits.softmax(-1), routing, valid)
        if self.z:
            losses["z"] = self.z * z_loss(logits, valid)
        return losses


def best(logits: Tensor, active: int) -> tuple[Tensor, Tensor, None]:
    """Choose the `active` experts with the largest logits; weigh them by the softmax over these.

    logits: (N, E). Returns the numbers of the experts and their weights, (N, active) both, and None
    instead of a mask of the choices that count: all of them do.
    """
    top, index = logits.topk(active)
    return index, top.softmax(-1), None


def wide_linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute rows W^T + b in float32 or better, even under autocast.  (N, d) -> (N, out).

    rows: (N, d); weight: W (out, d); bias: b (out,), or None. In bfloat16 the logits of similar
    experts would be equal.
    Raises: ShapeError for rows of another width.
    """
    check_width(rows, weight.shape[1])
    # double inputs stay double
    dtype = torch.promote_types(rows.dtype, torch.float32)
    bias = None if bias is None else bias.to(dtype)
    with uncast(rows.device):
        return F.linear(rows.to(dtype), weight.to(dtype), bias)


def wide_layer(rows: Tensor, layer: nn.Linear) -> Tensor:
    """Apply a linear layer to rows in float32 or better, even under autocast.  (N, d) -> (N, out).

    layer: a plain `nn.Linear`; a layer of another type, such as one with an adapter, is called as
    it is, in the dtype of its own weight.
    """
    if type(layer) is nn.Linear:
        return wide_linear(rows, layer.weight, layer.bias)
    with uncast(rows.device):
        # an adapter on the gate may be of another dtype than the rows
        y = layer(rows.to(layer.weight.dtype))
    return y.to(torch.promote_types(y.dtype, torch.float32))


def uncast(device: torch.device) -> AbstractContextManager[object]:
    """Turn autocast off inside the `with` block; the meta device has none."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def room_for(factor: float, pairs: int, experts: int) -> int:
    """Return an expert's capacity: how many tokens it takes, ceil(factor * pairs / experts).

    factor: 1 = just enough room if all experts are chosen equally often; pairs: number of pairs (a
    token and one of the experts that it chose) in the batch.
    """
    # the product of floats may be a little above the whole number that it should be
    return math.ceil(factor * pairs / experts - 1e-9)


def check_width(rows: Tensor, width: int) -> None:
    """Raise ShapeError unless the tokens `rows`, (N, d), have the width a router was built for."""
    if rows.shape[-1] != width:
        got = f"tokens of width {rows.shape[-1]}"
        fix = f"Build it with build({rows.shape[-1]}, generator=...)."
        raise ShapeError("router", got=got, want=f"{width}, as it was built for", fix=fix)


def of_real(rows: Tensor, valid: Tensor, route: Callable[[Tensor], Routing]) -> Routing:
    """Route the tokens that are no padding by calling `route` on them; padding gets no expert.

    rows: (N, d), all tokens; valid: (N,) bool, False = padding; route: tokens (n, d) -> their
    routing. Returns the routing of all N tokens.
    """
    real = valid.nonzero()[:, 0]
    routing = route(rows[real])
    return replace(routing, token=real[routing.token], tokens=len(rows))


def gated(gates: Tensor, dtype: torch.dtype, keep: Tensor | None = None) -> Routing:
    """Turn a dense matrix of gates into a `Routing`, with a pair (token, expert) for each gate.

    gates: (N, E), weights of E experts for N tokens; keep: (N, E) bool, True = the gate becomes a
    pair; None = gates above 0 do, and NaN, so that a NaN is seen in the output.
    """
    index = torch.arange(gates.shape[1], device=gates.device).expand_as(gates)
    all_pairs = Routing.from_topk(index, gates.to(dtype), gates.shape[1])
    # a NaN is not <= 0: its pair is kept, so that the output shows it
    return keep_pairs(all_pairs, (~(gates <= 0) if keep is None else keep).flatten())


def keep_pairs(routing: Routing, keep: Tensor) -> Routing:
    """Return the routing with only those pairs (token, expert) for which `keep` is True.

    routing: P pairs; keep: (P,) bool. On the meta device, which has no values, all pairs stay.
    """
    if keep.is_meta:
        return routing
    token, expert, weight = (t[keep] for t in (routing.token, routing.expert, routing.weight))
    return replace(routing, token=token, expert=expert, weight=weight)
