"""Zeros stay zeros: a training on a sparse model (SparseGPT and Wanda leave them)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core import Card, Paper, Partition
from ..core.errors import ConfigError
from .mask_settings import MaskSettings
from .masked import Weights


@dataclass(frozen=True)
class FixedMask(MaskSettings):
    """Weights that are 0 when the training starts stay 0.

    fit(model, train, schedule=FixedMask())
    Not for a dense model, which has no zeros to keep: prune it first.
    Raises: ConfigError on an unknown store; at the start for layers without a zero.
    """

    def begin(self, weights: Weights, generator: torch.Generator) -> Partition:
        """Return the masks of the weights that are not 0.  Raises: ConfigError if none is 0."""
        masks = super().begin(weights, generator)
        # a dense model: the user forgot to prune it
        if weights and masks.density() == 1:
            got = f"{len(weights)} layers without a zero"
            fix = "Prune first: intarsia.sparsify(model, intarsia.Wanda(density=0.5), rows)."
            raise ConfigError("fixed mask", got=got, want="a sparse model", fix=fix)
        return masks


CARD = Card(
    "fixed_mask",
    kind="schedule",
    config=FixedMask,
    paper=Paper("1506.02626", 2015, "Learning both Weights and Connections for Efficient Networks"),
    summary="A sparse model's zeros stay zeros while the rest is trained.",
    family="sparse training",
)
