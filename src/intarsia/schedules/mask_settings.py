"""The common settings of schedules of masks: layers, storage of states, masks that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Partition
from ..core.schema import check, setting
from .masked import STORES, Masks, SparseSchedule, Weights


@dataclass(frozen=True)
class MaskSettings(SparseSchedule):
    """A `SparseSchedule` with masks where weights are not 0, which never change.

    Raises: ConfigError on an unknown store.
    """

    _: KW_ONLY
    layers: tuple[str, ...] | None = setting(
        None,
        'The layers with masks, as globs of paths, "1x1" for pointwise convolutions; None = all '
        "linear maps and convolutions that are not grouped.",
    )
    store: str = setting(
        "dense",
        'The optimiser\'s memory: "dense", or "vectors", an optimiser that remembers the kept '
        "weights only.",
        choices=STORES,
    )

    reads_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self)

    def begin(self, weights: Weights, generator: torch.Generator) -> Partition:
        """Return the masks of the weights that are not 0; for a dense model they are all True.

        weights: name -> parameter; generator: unused here; other schedules draw.
        """
        return Partition.from_masks({name: w.detach() != 0 for name, w in weights.items()})

    def due(self, step: int, steps: int) -> bool:
        """Return False: the masks never change."""
        return False

    def update(
        self,
        weights: Weights,
        masks: Masks,
        gradients: Mapping[str, Tensor],
        progress: tuple[int, int],
        generator: torch.Generator,
    ) -> Masks:
        """Return the masks unchanged; schedules that change them need the other arguments."""
        return masks
