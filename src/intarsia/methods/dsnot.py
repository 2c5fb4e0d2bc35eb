"""DSnoT: a pruned layer's mask made better by swaps, without training (arXiv:2310.08915)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core import Card, NofM, Paper, Partition
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..partitions.swaps import Swapped, swap
from ..scores import Statistics, wanda
from ..sparse.prune.pruner import Pruner
from ..sparse.prune.pruners import Magnitude, SparseGPT, Wanda

RESTORE = ("kept", "dense")


@dataclass(frozen=True)
class DSnoT(Pruner):
    """The mask of another method, with weights swapped until each row's error is near 0.

    The error of a row is expected to be eps = sum_pruned W_j E_j, E_j the mean of input j; see
    `partitions.swap`.

    The released code by default leaves MLPs alone (base=Wanda(layers=["self_attn.*"])), stops at an
    |eps| of .1 summed over the tokens of a row, and divides by the mean of the variances within
    calibration rows, which between rows of other kinds of text miss the larger part.
    Raises: ConfigError on settings that cannot be.  Source: paper, section 3. Not where SparseGPT
    can be afforded: alone it is often better; compare.
    """

    base: Magnitude | Wanda | SparseGPT = setting(
        Wanda(), "The method of the first mask, with its density, pattern and layers."
    )
    cycles: float = setting(
        50,
        "The swaps of a row at most, below 1 a share of its width: 50, the paper's number for "
        "rows of 4,096, is .012 of those, and .087 of SmolLM2's 576.",
        least=0,
    )
    tolerance: float = setting(
        0.02,
        "The |eps| at which a row stops, as a share of the layer's mean at the start.",
        least=0,
    )
    power: float = setting(1.0, "The power of the variance that a gain is divided by.", least=0)
    restore: str = setting(
        "kept",
        'The values of weights that grow again, after a method that compensates: "kept", they '
        'are dense and others stay compensated; "dense", all are dense.',
        choices=RESTORE,
    )
    guard: bool = setting(
        True,
        "Stop a row before |eps| grows or eps changes its sign; the released code continues by "
        "default (False).",
    )

    def __post_init__(self) -> None:
        """Check the settings, and that the base method leaves weights to swap."""
        check(self)
        # DSnoT on DSnoT would swap a mask that is already at its optimum.
        base: Any = self.base
        if not isinstance(base, Pruner) or isinstance(base, DSnoT):
            want, fix = "Magnitude, Wanda or SparseGPT", "Pass DSnoT(Wanda(density=0.5))."
            raise ConfigError("base", got=type(base).__name__, want=want, fix=fix)
        if isinstance(base, SparseGPT) and base.rows > 1:
            want, fix = "a mask of single weights, which are swapped", "Use rows=1."
            raise ConfigError("base", got=f"blocks of {base.rows} rows", want=want, fix=fix)

    @property
    def density(self) -> float:
        """The density of the base method."""
        return self.base.density

    @property
    def layers(self) -> Sequence[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The layers of the base method."""
        return self.base.layers

    @property
    def n_of_m(self) -> NofM | None:
        """The N:M pattern of the base method, None if it has none."""
        return self.base.n_of_m

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that are read: means and variances of inputs, and the base's own."""
        return self.base.needs | {"mean", "square"}

    def on(self, layers: Sequence[str]) -> Any:
        """Return the method with its base restricted to other layers."""
        return replace(self, base=self.base.on(layers))

    def swapped(self, weight: Tensor, mask: Tensor, statistics: Statistics) -> Swapped:
        """Swap weights between kept and pruned, starting from the mask of the base method.

        weight: (out, in); mask: (out, in) bool, True = kept; statistics: means and variances of the
          layer's inputs. Returns the new mask and counts of the swaps, see
          `partitions.swaps.Swapped`.
        """
        pattern = self.n_of_m
        # Within an N:M pattern the base's score picks the weight to prune, elsewhere Wanda's does.
        score = (
            wanda(weight, statistics) if pattern is None else self.base.score(weight, statistics)
        )
        return swap(
            weight,
            mask,
            statistics,
            score,
            cycles=self.cycles,
            tolerance=self.tolerance,
            power=self.power,
            pattern=pattern,
            guard=self.guard,
        )

    def edit(
        self, name: str, weight: Tensor, statistics: Statistics, generator: torch.Generator
    ) -> tuple[Partition, Tensor]:
        """Prune one layer by the base method, then improve its mask by swaps."""
        # The base prunes first; a base such as SparseGPT also compensates in `new`.
        part, new = self.base.edit(name, weight, statistics, generator)
        mask = part.mask(name, 0).to(weight.device)
        swaps = self.swapped(weight, mask, statistics)
        # A weight that was kept all along keeps the base's compensation; a re-grown one is dense.
        compensated = mask & swaps.kept if self.restore == "kept" else torch.zeros_like(mask)
        new = torch.where(compensated, new, weight).masked_fill(~swaps.kept, 0)
        pattern = part.pattern  # rows keep their number, and groups of N:M theirs
        return Partition.from_masks({name: swaps.kept.cpu()}, pattern=pattern), new


CARD = Card(
    "dsnot",
    kind="change",
    config=DSnoT,
    paper=Paper(
        "2310.08915",
        2023,
        "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs",
    ),
    summary="A pruned mask made better by swaps that shrink each row's expected error.",
    family="pruning",
    names=("Dynamic Sparse no Training",),
)
