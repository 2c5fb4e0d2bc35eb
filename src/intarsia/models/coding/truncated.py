"""Expectation truncation: EM over the few states that can explain a sample (arXiv:1908.06843)."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...core.checks import between
from ...core.errors import ConfigError
from .annealed import Annealed, At
from .samples import count_of_causes
from .shards import RowShards
from .states import Array, States

CUT_FROM = 2 / 3  # of the run: the share of samples that are left out grows from here


@dataclass(repr=False)
class Truncated(Annealed, abc.ABC):
    """Sparse coding by expectation truncation; the base of BSC, TSC, DSC, MCA, MMCA and GSC.

    See `BSC` for the settings.
    """

    n_candidates: int | None = None
    max_active: int | None = None
    data_cut: bool = True

    _usual: ClassVar[tuple[int, int]] = (8, 5)  # candidates, and causes at most

    def _values(self) -> tuple[float, ...]:
        """The values of a cause that is on."""
        return (1.0,)

    def _check(self, shards: RowShards) -> None:
        super()._check(shards)
        width, active = self._sizes()
        if width > self.n_components:
            want = f"at most n_components={self.n_components}"
            raise ConfigError("n_candidates", got=width, want=want, fix="Lower it.")
        between("n_candidates", width, 1, self.n_components)
        between("max_active", active, 1, width)

    def _sizes(self) -> tuple[int, int]:
        """Candidates of a sample, and causes that are on at most."""
        usual, most = self._usual
        width = min(usual, self.n_components) if self.n_candidates is None else self.n_candidates
        return width, min(most, width) if self.max_active is None else self.max_active

    def _states(self) -> States:
        return States(*self._sizes(), self._values())

    def _cut(self, at: At, step: int) -> float:
        """The share of samples that is left out: 1 - P(at most max_active causes), ramped up."""
        ramp = (step / self.n_iter - CUT_FROM) / (1 - CUT_FROM)
        return max(0.0, ramp) * (1 - self._within(at)) if self.data_cut else 0.0

    def _within(self, at: At) -> float:
        """P(at most max_active causes are on)."""
        return float(count_of_causes(self._shares(at))[: self._sizes()[1] + 1].sum())

    def _shares(self, at: At) -> Array:
        """P(cause h is on), (H,)."""
        return np.full(len(at["W"]), at["prior"].sum())

    def _lift(self, at: At) -> float:
        """pi H A / B: a share of causes among samples that have few of them, to one of all."""
        if not self.data_cut:
            return 1.0
        within = count_of_causes(self._shares(at))[: self._sizes()[1] + 1]
        few = float((np.arange(len(within)) * within).sum())
        return float(self._shares(at).sum()) * float(within.sum()) / few
