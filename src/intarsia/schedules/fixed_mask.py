"""Zeros stay zeros: a training on a sparse model (SparseGPT and Wanda leave them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Card, Paper, Partition
from ..core.checks import one_of
from ..core.errors import ConfigError
from .masked import STORES, Kept, Weights


@dataclass(frozen=True)
class FixedMask:
    """What is 0 when the training starts is 0 ever after.

    layers: globs of layers, None = all linear maps and convolutions that are not grouped.
    store: "dense", or "vectors", an optimiser that remembers the kept weights only.

    fit(model, train, schedule=FixedMask())
    Raises: ConfigError on an unknown store; at the start for layers without a zero.
    """

    layers: tuple[str, ...] | None = None
    store: str = "dense"

    reads_gradients = False

    def __post_init__(self) -> None:
        one_of("store", self.store, STORES)

    def begin(self, weights: Weights, generator: torch.Generator) -> Partition:
        """Where weights are not 0."""
        found = {name: w.detach() != 0 for name, w in weights.items()}
        if weights and all(bool(kept.all()) for kept in found.values()):
            got = f"{len(found)} layers without a zero"
            fix = "Prune first: intarsia.sparsify(model, intarsia.Wanda(density=0.5), rows)."
            raise ConfigError("fixed mask", got=got, want="a sparse model", fix=fix)
        return Partition.from_masks(found)

    def due(self, step: int, steps: int) -> bool:
        """Never."""
        return False

    def update(
        self,
        weights: Weights,
        kept: Kept,
        gradients: Mapping[str, Tensor],
        at: tuple[int, int],
        generator: torch.Generator,
    ) -> Kept:
        """The masks as they are."""
        return kept


CARD = Card(
    "fixed_mask",
    kind="schedule",
    config=FixedMask,
    paper=Paper("1506.02626", 2015, "Learning both Weights and Connections for Efficient Networks"),
    summary="A sparse model's zeros stay zeros while the rest is trained.",
    family="sparse training",
    names=("fixed-mask",),
)
