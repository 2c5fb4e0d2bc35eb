"""Three ways to prune a layer: by size, by size and inputs, and with compensation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core import Blocks, Card, Paper, Partition
from ...core.errors import ConfigError
from ...core.schema import setting
from ...partitions import choose_and_compensate, keep_n_of_m, keep_rows, keep_shares
from ...scores import Statistics, obs, wanda
from .pruner import LayerPruner


class MaskPruner(LayerPruner):
    """Pruner that keeps the weights of the largest scores as they are."""

    def choose(self, scores: Mapping[str, Tensor]) -> Partition:
        """Select the weights to keep: in each matrix, the share `density` with the largest scores.

        scores: path -> (out, in), one matrix here. Returns a partition in which part 0 is kept.
        """
        return keep_shares(scores, dict.fromkeys(scores, self.density))

    def edit(
        self, name: str, weight: Tensor, statistics: Statistics, generator: torch.Generator
    ) -> tuple[Partition, Tensor]:
        """Return the weights that stay, and the weight with zeros in all other entries."""
        scores, n_of_m = {name: self.score(weight, statistics)}, self.n_of_m
        # a pattern n:m chooses inside each m inputs; without one the largest scores stay
        part = self.choose(scores) if n_of_m is None else keep_n_of_m(scores, n_of_m.n, n_of_m.m)
        return part, weight.masked_fill(~part.mask(name, 0).to(weight.device), 0)


@dataclass(frozen=True)
class Magnitude(MaskPruner):
    """Pruner that keeps the largest |W| of each layer; needs no calibration.

    Source: Han et al. (2015). Not for a language model: Wanda is as cheap and far better.
    """


@dataclass(frozen=True)
class Wanda(MaskPruner):
    """Pruner that keeps the largest |W_ij| ||x_j|| of each row, as they are.

    Of a row of C weights C - floor((1 - density) C) are kept.
    Source: paper, equation 1 and algorithm 1. Two forwards of each block. Not for low
    densities: SparseGPT is better there, and costs minutes.
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"square"})

    def score(self, weight: Tensor, statistics: Statistics) -> Tensor:
        """Compute |W_ij| sqrt(mean x_j^2)."""
        return wanda(weight, statistics)

    def choose(self, scores: Mapping[str, Tensor]) -> Partition:
        """Select the largest scores of each row."""
        # algorithm 1 compares weights of one output only
        return keep_rows(scores, self.density)


@dataclass(frozen=True)
class SparseGPT(LayerPruner):
    """Pruner that removes weights column by column, and lets later columns make up for them.

    The density holds in each `block` of columns.
    Not where minutes are too many: Wanda takes two forwards of each block.
    Raises: as `LayerPruner`; ConfigError for rows or inputs with a pattern; at the layer in
    question ShapeError where they do not divide the outputs or inputs.
    Source: paper, algorithm 1; see `choose_and_compensate`. Blocks of rows are not the paper's.
    """

    damp: float = setting(
        0.01, "The damping of the Hessian, a share of its mean diagonal.", above=0, fix="Try 0.01."
    )
    block: int = setting(128, "The columns that are chosen at once.", least=1, fix="Try 128.")
    rows: int = setting(
        1,
        "The consecutive outputs that keep the same inputs, as `Chw` stores them fastest; 1 = "
        "each has its own.",
        least=1,
        fix="Try 4.",
    )
    inputs: int = setting(
        1,
        'The consecutive inputs that go together, 4 as `Chw(values="int8")` takes them.',
        least=1,
        fix="Try 4.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rows", "inputs"):
            if getattr(self, name) > 1 and self.pattern is not None:
                got = f"{name}={getattr(self, name)} with pattern {self.pattern!r}"
                raise ConfigError(name, got=got, want="one of both", fix="Leave one of them out.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"hessian"})

    def score(self, weight: Tensor, statistics: Statistics) -> Tensor:
        """Return W_ij^2 / U_jj^2, U the Cholesky factor of the inverse Hessian; (out, in)."""
        # loss from removing one weight if all later columns make up for it (optimal brain surgeon)
        return obs(weight, statistics, self.damp)

    def edit(
        self, name: str, weight: Tensor, statistics: Statistics, generator: torch.Generator
    ) -> tuple[Partition, Tensor]:
        """Remove weights column by column; change later columns to make up for them."""
        # algorithm 1: from left to right, each column's error is spread over the columns behind it
        return choose_and_compensate(
            weight,
            statistics,
            self.density,
            pattern=Blocks(self.rows, self.inputs) if self.rows * self.inputs > 1 else self.n_of_m,
            damp=self.damp,
            block=self.block,
            name=name,
        )


def _card(
    key: str, config: type, paper: Paper, summary: str, *tags: str, names: Sequence[str] = ()
) -> Card:
    return Card(
        key,
        kind="change",
        config=config,
        paper=paper,
        tags=frozenset(tags),
        summary=summary,
        family="pruning",
        names=tuple(names),
    )


# what the catalogue says of each pruner
CARDS = (
    _card(
        "magnitude",
        Magnitude,
        Paper("1506.02626", 2015, "Learning both Weights and Connections for Efficient Networks"),
        "The largest weights of each layer are kept.",
        names=["magnitude pruning"],
    ),
    _card(
        "wanda",
        Wanda,
        Paper(
            "2306.11695", 2023, "A Simple and Effective Pruning Approach for Large Language Models"
        ),
        "In each row the largest products of weight and size of input are kept.",
    ),
    _card(
        "sparsegpt",
        SparseGPT,
        Paper(
            "2301.00774",
            2023,
            "SparseGPT: Massive Language Models Can be Accurately Pruned in One-Shot",
        ),
        "Weights of the least error go, column by column, and later columns make up for it.",
        "compensates",
    ),
)
