"""DSL: recommenders with embedding tables sparse from the start (arXiv:2402.02855)."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from ..core import Card, Paper
from ..core.schema import setting
from .drop_and_grow import SPREADS, DropAndGrow
from .masked_layers import TABLES

LAST = 0.005  # the share that is exchanged at the end


@dataclass(frozen=True)
class Dsl(DropAndGrow):
    """Every table has random masks of one density, which follow gradients along the whole training.

    Every `every` steps, instead of the optimiser's step: in each table the smallest |w| of a share
    rho of the kept weights go, and as many with the largest mean |g| come, at 0; rho falls along
    half a cosine from `drop` to 0.005. Most rows of a table have no gradient in one batch, so the
    mean is a running one, m = b m + (1 - b) |g|. The means take a dense float32 table each while
    training.

    fit(recommender, train, schedule=Dsl(density=0.2))
    Not to save memory in training, nor for tables with sparse gradients: means are dense.
    Raises: ConfigError on settings that cannot be; at the start for a table with sparse gradients,
    or one that shares its weight and is not named.
    Source: paper, section 3; masks have exactly round(d n) weights where the released ones are
    drawn one by one, biases stay dense, and all of Adam's states are masked.
    """

    density: float = setting(
        0.5, "The share of each table's weights that is kept.", above=0, most=1, fix="Try 0.25."
    )
    drop: float = setting(
        0.5,
        "The share of a table's weights that is exchanged at first.",
        least=0,
        most=1,
        fix="Try 0.3.",
    )
    every: int = setting(1000, "The steps between two changes of the masks.", least=1)
    stop: float = setting(
        1.0,
        "The share of the steps after which the masks are fixed.",
        least=0,
        most=1,
        fix="Try 0.75.",
    )
    spread: str = setting(
        "uniform",
        'The way in which the density is spread over the tables: "erdos-renyi", or "uniform", '
        "the same in each.",
        choices=tuple(SPREADS),
    )
    memory: float = setting(
        0.99,
        "The share b of the running mean that a step keeps; 0 = the batch alone, as in the paper.",
        least=0,
        below=1,
    )
    _: KW_ONLY
    layers: tuple[str, ...] | None = setting(
        (TABLES,),
        'The layers with masks: "tables", every embedding; ("tables", "*") masks linear maps, too.',
    )

    reads_gradients = True

    def share(self, step: int, steps: int) -> float:
        """Return rho, the share of kept weights to exchange: half a cosine from `drop` to 0.005.

        The end is reached at the share `stop` of the steps.
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
