"""MoSA: split an adapter into disjoint parts, train a few at a time, merge (arXiv:2312.02923)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from ..adapters import Bottleneck, BottleneckCell, Lora, LoraCell
from ..core import Card, Paper, Site
from ..core.errors import ConfigError
from ..mixtures.routed import RoutedCell, draw_apart
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

    MANY_EPOCHS: ClassVar[int] = 15

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

    @classmethod
    def for_budget(cls, images: int, epochs: int, **settings: Any) -> Mosa:
        """The k that suits a budget: half of the parts where images are seen often, else all.

        A rule from measurements on validation images (docs/why.md): with few epochs every part
        needs all updates it can get, so the adapter stays whole (k = N).
        settings: of Mosa; an `active` among them wins.
        """
        experts = int(settings.get("experts", 4))
        active = max(1, experts // 2) if epochs >= cls.MANY_EPOCHS else experts
        return cls(**{"active": active} | settings)

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


class MosaCell(RoutedCell):
    """The expected addition in evaluation, a random k-part one in training."""

    def __init__(
        self, config: Mosa, body: BottleneckCell | LoraCell, generator: torch.Generator
    ) -> None:
        layers: dict[str, nn.Module] = {}
        routers: dict[str, RandomRouter] = {}
        for side in ("down", "up"):
            if config.split not in (side, "both"):
                continue
            linear: nn.Linear = getattr(body, side)
            partition = random_disjoint(
                {"weight": linear.weight.shape}, config.experts, generator=generator,
                unit=config.unit,
            )  # fmt: skip
            layers[side] = SplitLinear(
                linear, partition, active=config.active, scaling=config.scaling,
                decay=config.decay, zero_start=side in body.zero_sides,
            )  # fmt: skip
            routers[side] = draw_apart(
                config.experts, config.active, config.draw, generator=generator
            )
            routers[side].fixed = config.scaling == "paper"
        super().__init__(body, layers, routers)
        self.config = config


CARD = Card(
    "mosa",
    kind="adapter",
    config=Mosa,
    paper=Paper(
        "2312.02923",
        2023,
        "Split & Merge: Unlocking the Potential of Visual Adapters via Sparse Training",
    ),
    tags=frozenset({"stochastic", "folds", "zero_start"}),
    tiny={"over": Bottleneck(4, activation="gelu")},
    summary="Split an adapter into disjoint parts, train them stochastically, merge them into one.",
    family="adapter mixtures",
)
