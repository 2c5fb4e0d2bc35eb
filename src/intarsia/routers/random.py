"""Uniform random routing (THOR, arXiv:2110.04260): AdaMix (arXiv:2205.12410) draws for each batch,
MoSA (arXiv:2312.02923) so too; a draw for each sample is the same law with more parts trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Card, Paper, Routing
from ..core.errors import ConfigError, ShapeError


class RandomRouter(nn.Module):
    """k of E experts, uniformly without replacement, for the whole batch or for each sample.

    x: (B, ...) -> Routing of shape (B, E), weight 1 at the k drawn experts.

    Draws come from `generator` (on the CPU, so that every device sees the same ones). A draw is
    kept until `redraw` where `hold` is set: a recomputation of the forward, as gradient
    checkpointing does, then meets the same experts. `passes` is the number of copies of the batch
    that are stacked in x, each drawn anew. `shard` = (rank, world): each rank takes its rows of the
    joined batch's draws, so that data-parallel training draws what one process would. `fixed`
    forbids to change k, for mixtures whose merge depends on it.

    Raises: ConfigError unless 1 <= active <= experts; ShapeError for a batch that the copies do not
    divide, or of another size than the held draw.
    """

    def __init__(self, experts: int, active: int, per: str, *, generator: torch.Generator) -> None:
        super().__init__()
        if experts < 1:
            raise ConfigError("experts", got=experts, want="at least 1", fix="Try 4.")
        if per not in ("batch", "sample"):
            raise ConfigError("draw", got=repr(per), want="'batch' or 'sample'", fix="Pick one.")
        self.experts, self.per, self.generator = experts, per, generator
        self.fixed = False
        self.active = active
        self.hold, self.passes, self.shard = False, 1, (0, 1)
        self._held: Tensor | None = None

    @property
    def active(self) -> int:
        """k, how many experts a draw selects; a schedule may set it."""
        return self._active

    @active.setter
    def active(self, k: int) -> None:
        self.check_active(k)
        self._active = k

    def check_active(self, k: int) -> None:
        """Raise ConfigError unless k experts can be drawn from now on."""
        if not 1 <= k <= self.experts:
            raise ConfigError(
                "active", got=k, want=f"1 ... {self.experts} (experts)",
                fix="k = 1 is the paper, k = experts is the plain adapter.",
            )  # fmt: skip
        if self.fixed and k != self._active:
            raise ConfigError(
                "active", got=k, want=f"{self._active}, as built: the merge depends on it",
                fix="Use scaling='inverted', whose merge holds for every k.",
            )  # fmt: skip

    def redraw(self) -> None:
        """Forget the held draw."""
        self._held = None

    def _draw(self, rows: int) -> Tensor:
        rank, world = self.shard
        size = 1 if self.per == "batch" else rows * world
        # the k largest of E uniforms are a uniform k-subset
        index = torch.rand(size, self.experts, generator=self.generator).topk(self.active).indices
        return index.expand(rows, -1) if size == 1 else index[rank * rows : (rank + 1) * rows]

    def forward(self, x: Tensor, state: Tensor | None = None) -> Routing:
        rows = x.shape[0]
        if not self.hold or self._held is None:
            if rows % self.passes:
                raise ShapeError(
                    "passes", got=f"{rows} rows", want=f"a multiple of {self.passes}",
                    fix="Stack whole copies of the batch.",
                )  # fmt: skip
            per_pass = rows // self.passes
            self._held = torch.cat([self._draw(per_pass) for _ in range(self.passes)])
        if len(self._held) != rows:
            raise ShapeError(
                "held draw", got=f"{rows} rows", want=f"{len(self._held)}, as when it was drawn",
                fix="Call redraw(model) before every batch.",
            )  # fmt: skip
        index = self._held.to(x.device, non_blocking=True)  # (B, k)
        return Routing.from_topk(index, torch.ones_like(index, dtype=x.dtype), self.experts)


@dataclass(frozen=True)
class RandomRouting:
    """k of N experts at random; see RandomRouter.

    experts: N.
    active: k.
    draw: "sample", each sample its own k experts; "batch", one draw for all.

    Raises: ConfigError on a setting that cannot be.
    """

    experts: int = 4
    active: int = 1
    draw: str = "sample"

    def __post_init__(self) -> None:
        # the router says what can be wrong
        self.build(1, generator=torch.Generator())

    def build(self, width: int, *, generator: torch.Generator) -> RandomRouter:
        """The router of tokens of any width."""
        return RandomRouter(self.experts, self.active, self.draw, generator=generator)


def random_routers(model: nn.Module) -> dict[str, RandomRouter]:
    """Every random router inside a model, by path."""
    return {n: m for n, m in model.named_modules() if isinstance(m, RandomRouter)}


def redraw(model: nn.Module) -> None:
    """Let every random router draw anew at its next call."""
    for router in random_routers(model).values():
        router.redraw()


@contextmanager
def passes(model: nn.Module, count: int) -> Iterator[None]:
    """Inside, the model's input is `count` stacked copies of a batch, each drawn apart."""
    routers = random_routers(model).values()
    before = [router.passes for router in routers]
    for router in routers:
        router.passes = count
    try:
        yield
    finally:
        for router, old in zip(routers, before, strict=True):
            router.passes = old


CARD = Card(
    "random",
    kind="router",
    config=RandomRouting,
    paper=Paper(
        "2110.04260", 2021, "Taming Sparsely Activated Transformer with Stochastic Experts"
    ),
    tags=frozenset({"sparse", "stochastic"}),
    summary="Experts drawn uniformly at random, for each sample or for the whole batch.",
    family="stochastic routing",
)
