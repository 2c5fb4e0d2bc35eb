"""MoSA: split an adapter into disjoint parts, train a few at a time, merge (arXiv:2312.02923)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from ..adapters import Bottleneck, BottleneckCell, Lora, LoraCell
from ..core import Card, Cell, Paper, Site
from ..core.errors import ConfigError
from ..mixtures.split import SplitLinear
from ..partitions import random_disjoint
from ..routers import RandomRouter

SPLITS = ("up", "down", "both")


@dataclass(frozen=True)
class Mosa:
    """A mixture of sparse adapters over any two-sided cell.

    The chosen projections of `over` are dealt out at random to N = `experts` disjoint parts; a
    training forward activates k = `active` of them; evaluation uses the merge, one plain adapter.

    over: the adapter that is split.
    active: k. 1 is the paper, N the plain adapter.
    split: "up" (the hierarchical strategy: the other side stays dense and shared), "down", "both".
    draw: "sample", each image its own k parts; "batch", one draw for all (the paper).
    scaling: "inverted" or "paper"; decay: "owned", "delta" or "official"; see SplitLinear.
    unit: what is dealt, see random_disjoint.

    Raises: ConfigError on a setting that cannot be.
    Not for ample data and few steps: every part then sees a fraction of an already short training;
    `Mosa.for_budget` knows when to leave the adapter whole.
    """

    over: Bottleneck | Lora = field(default_factory=lambda: Bottleneck(activation="gelu"))
    experts: int = 4
    active: int = 1
    split: str = "up"
    draw: str = "sample"
    scaling: str = "inverted"
    decay: str = "owned"
    unit: str = "element"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ConfigError("split", got=repr(self.split), want=f"one of {SPLITS}", fix="Pick.")
        if self.experts < 1:
            raise ConfigError("experts", got=self.experts, want="at least 1", fix="Try 4.")
        # the router and the split say what else can be wrong
        RandomRouter(self.experts, self.active, self.draw, generator=torch.Generator())

    @property
    def roles(self) -> tuple[str, ...]:
        return self.over.roles

    @property
    def position(self) -> str:
        return self.over.position

    def build(self, site: Site, *, generator: torch.Generator) -> MosaCell:
        return MosaCell(self, self.over.build(site, generator=generator), generator)


def Mosl(rank: int = 16, **settings: object) -> Mosa:
    """MoSA over LoRA: both sides split, drawn apart (paper, section on other methods)."""
    return Mosa(over=Lora(rank), **({"split": "both"} | settings))  # pyright: ignore


class MosaCell(Cell):
    """The expected addition in evaluation, a random k-part one in training."""

    def __init__(
        self, config: Mosa, body: BottleneckCell | LoraCell, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config = config
        self.body = body
        self.routers = nn.ModuleDict()
        for side in ("down", "up"):
            if config.split not in (side, "both"):
                continue
            linear: nn.Linear = getattr(body, side)
            partition = random_disjoint(
                {"weight": linear.weight.shape}, config.experts, generator=generator,
                unit=config.unit,
            )  # fmt: skip
            split = SplitLinear(
                linear, partition, active=config.active, scaling=config.scaling,
                decay=config.decay, zero_start=side in body.zero_sides,
            )  # fmt: skip
            setattr(body, side, split)
            seed = int(torch.randint(2**62, (), generator=generator))
            self.routers[side] = RandomRouter(
                config.experts, config.active, config.draw,
                generator=torch.Generator().manual_seed(seed),
            )  # fmt: skip

    def _project(self, side: str, rows: int) -> object:
        layer = getattr(self.body, side)
        if side not in self.routers or not self.training:
            return layer
        router = self.routers[side]
        assert isinstance(router, RandomRouter)
        gates = router(self.body.down.weight.new_empty(rows, 0)).dense()  # (rows, N)
        if router.per == "batch":
            gates = gates[:: rows // router.passes]  # one row for each pass
        layer.active = router.active
        return partial(layer, gates=gates)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        down, up = self._project("down", rows), self._project("up", rows)
        return self.body.compute(self.cast(x), down, up)  # pyright: ignore[reportArgumentType]

    def merged(self) -> BottleneckCell | LoraCell:
        plain = copy.copy(self.body)
        plain._modules = dict(self.body._modules)
        for side in self.routers:
            setattr(plain, side, getattr(self.body, side).merged())
        return copy.deepcopy(plain)

    def delta(self) -> Tensor | None:
        return self.merged().delta()


CARD = Card(
    "mosa",
    kind="adapter",
    config=Mosa,
    paper=Paper(
        "2312.02923",
        2023,
        "Split & Merge: Unlocking the Potential of Visual Adapters via Sparse Training",
    ),
    tags=frozenset({"stochastic", "folds"}),
    tiny={"over": Bottleneck(4, activation="gelu")},
    summary="Split an adapter into disjoint parts, train them stochastically, merge them into one.",
)
