"""The protocol of methods that prune one layer at a time, block by block."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core import Partition
from ..scores import Statistics


@runtime_checkable
class Sparsifier(Protocol):
    """Settings that choose the weights of one layer to keep, and may change them.

    needs: the statistics of the layer's inputs that it reads: "mean", "square", "hessian"; others
    are not collected.
    edit: (name, weight (out, in), statistics, generator) -> a one-part Partition of `name`,
    and the new weight, of the same shape and dtype, exactly 0 outside the part.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    def edit(
        self, name: str, weight: Tensor, statistics: Statistics, generator: torch.Generator
    ) -> tuple[Partition, Tensor]: ...
