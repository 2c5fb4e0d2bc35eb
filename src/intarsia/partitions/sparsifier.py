"""What prunes one layer at a time: the protocol that the block walker carries out."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..core import Partition
from ..scores import Statistics


class Sparsifier(Protocol):
    """Settings that choose the weights of one layer to keep, and may change them.

    needs: which statistics of the layer's inputs it reads: "mean", "square", "hessian"; others are
    not collected.
    edit: (name, weight (out, in), what the layer saw, generator) -> a one-part Partition of `name`,
    and the new weight, of the same shape and dtype, exactly 0 outside the part.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    def edit(
        self, name: str, weight: Tensor, statistics: Statistics, generator: torch.Generator
    ) -> tuple[Partition, Tensor]: ...
