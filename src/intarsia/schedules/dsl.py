"""DSL: recommenders whose embedding tables are sparse from the start (arXiv:2402.02855)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from ..core import Card, Paper
from ..core.checks import below_one
from .drop_and_grow import DropAndGrow
from .masked_layers import TABLES

LAST = 0.005  # the share that is exchanged at the end


@dataclass(frozen=True)
class Dsl(DropAndGrow):
    """Every table has random masks of one density, which follow gradients along the whole training.

    Every `every` steps, in place of the optimiser's step: in each table the smallest |w| of a share
    rho of the kept weights go, and as many with the largest mean |g| come, at 0; rho falls along
    half a cosine from `drop` to 0.005. Most rows of a table have no gradient in one batch, so the
    mean is a running one, m = b m + (1 - b) |g| with b = `memory`; 0 = the batch alone, as in the
    paper. The means take a dense float32 table each while training.
    density: of each table.  drop: the share that is exchanged at first.  stop: the share of the
    steps after which masks are fixed.  spread: as `DropAndGrow`.  layers: "tables", every
    embedding; ("tables", "*") masks linear maps, too.  store: see `MaskSettings`.

    fit(recommender, train, schedule=Dsl(density=0.2))
    Raises: ConfigError on settings that cannot be; at the start for a table with sparse gradients,
    or one that shares its weight and is not named.
    Source: paper, section 3; masks have exactly round(d n) weights where the released ones are
    drawn one by one, biases stay dense, and all of Adam's states are masked.
    """

    density: float = 0.5
    drop: float = 0.5
    every: int = 1000
    stop: float = 1.0
    spread: str = "uniform"
    memory: float = 0.99
    layers: tuple[str, ...] | None = field(default=(TABLES,), kw_only=True)

    reads_gradients = True

    def __post_init__(self) -> None:
        super().__post_init__()
        # at 1 the running mean would never change
        below_one("memory", self.memory)

    def share(self, step: int, steps: int) -> float:
        """Return rho, the share of kept weights to exchange: half a cosine from `drop` to 0.005.

        step: counted from 0; steps: number in the training; the end is reached at the share `stop`
          of the steps.
        """
        # every table keeps an exchange of LAST until the stop, unless `drop` is smaller still
        last = min(LAST, self.drop)
        time = step / (self.stop * steps)
        return last + (self.drop - last) / 2 * (1 + math.cos(math.pi * time))

    def grow_score(self, weight: Tensor, grad: Tensor | None) -> Tensor | None:
        """Return |grad|, by which weights grow; None without a gradient.  weight: unused."""
        return None if grad is None else grad.abs()


CARD = Card(
    "dsl",
    kind="schedule",
    config=Dsl,
    paper=Paper(
        "2402.02855",
        2024,
        "Dynamic Sparse Learning: A Novel Paradigm for Efficient Recommendation",
    ),
    tiny={"density": 0.5, "every": 2, "layers": None},
    summary="Embedding tables sparse from the start: small weights go, others come by gradient.",
    family="sparse training",
    names=("Dynamic sparse learning",),
)
