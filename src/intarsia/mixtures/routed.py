"""A two-sided cell with projections that a router chooses while it trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ..core import Cell
from ..core.errors import ConfigError, ShapeError
from ..gating.random_source import seeded_by
from ..routers import RandomRouter

Linear = Callable[[Tensor], Tensor]


class TwoSided(Protocol):
    """A cell made of a down and an up projection, which can compute with others in their place."""

    down: nn.Linear
    up: nn.Linear
    scale: Tensor | float  # of what `up` gives
    zero_sides: frozenset[str]

    def compute(self, x: Tensor, down: Linear, up: Linear) -> Tensor: ...


class GatedLinear(Protocol):
    """A linear map with experts: forward(x, gates (G, N) or None = merged), merged()."""

    active: int

    def __call__(self, x: Tensor, gates: Tensor | None = None) -> Tensor: ...
    def merged(self) -> nn.Linear: ...


class RoutedCell(Cell):
    """A random choice of experts in training, their merge in evaluation.

    body: the cell; layers: side ("down", "up") -> the GatedLinear that takes its place there;
    routers: side -> the RandomRouter that draws for it, apart from the other side's.
    """

    def __init__(
        self, body: Cell, layers: dict[str, nn.Module], routers: dict[str, RandomRouter]
    ) -> None:
        """Replace the down and up projections of an adapter by layers with experts."""
        super().__init__()
        self.body = body
        for side, layer in layers.items():
            setattr(body, side, layer)
        self.routers = nn.ModuleDict(routers)

    def _project(self, side: str, x: Tensor) -> Linear:
        """Return a projection of the adapter; while training, with experts that are drawn for x."""
        # x: (B, ..., d), the adapter's input
        layer = getattr(self.body, side)
        if side not in self.routers or not self.training:
            return layer
        router = cast(RandomRouter, self.routers[side])
        gates = router(x).dense()  # (B, N)
        if router.per == "batch":
            gates = gates[:: max(1, len(gates) // router.context.passes)]  # one row for each pass
        # the layer divides by k, which a schedule may have changed
        layer.active = router.active
        return partial(layer, gates=gates)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the adapter for x, (B, ..., d), in training with experts drawn for it."""
        x = self.cast(x)
        body = cast(TwoSided, self.body)
        return body.compute(x, self._project("down", x), self._project("up", x))

    def merged(self) -> Cell:
        """Return a plain copy of the adapter; its layers with experts become merged linear maps."""
        # a shallow copy of the body: its experts are merged, not copied first
        plain = copy.copy(self.body)
        plain._modules = dict(self.body._modules)
        for side in self.routers:
            setattr(plain, side, cast(GatedLinear, getattr(self.body, side)).merged())
        return copy.deepcopy(plain)

    def delta(self) -> Tensor | None:
        return self.merged().delta()


def two_sided(body: Cell) -> Any:
    """Return an adapter with linear maps `down` and `up` as it is.  Raises: ConfigError."""
    if not all(isinstance(getattr(body, side, None), nn.Linear) for side in ("down", "up")):
        want = "a cell of a down and an up projection"
        fix = "Use over=Bottleneck(...) or over=Lora(...)."
        raise ConfigError("over", got=type(body).__name__, want=want, fix=fix)
    return body


def check_gates(gates: Tensor, experts: int, rows: int) -> None:
    """Raise ShapeError unless gates are (G, experts) with G a divisor of the rows.

    gates: 1 = the expert is active, a row for each group of consecutive inputs; rows: the number of
      inputs; each group has rows / G of them.
    """
    if gates.shape[1:] != (experts,) or not len(gates) or rows % len(gates):
        want = f"(G, {experts}) with G a divisor of the rows"
        fix = "One gate row for each sample, or one for the batch."
        raise ShapeError("gates", got=f"{tuple(gates.shape)} for {rows} rows", want=want, fix=fix)


def draw_apart(experts: int, active: int, per: str, *, generator: torch.Generator) -> RandomRouter:
    """Return a `RandomRouter` with a generator of its own, its seed drawn from `generator`."""
    return RandomRouter(experts, active, per, generator=seeded_by(generator))
