"""Expectation truncation: EM over the few states that explain a sample (arXiv:1908.06843)."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...core.checks import between
from ...core.errors import ConfigError
from ...core.schema import setting
from .annealed import Annealed, Params
from .samples import count_of_causes
from .shards import RowShards
from .states import Array, States

CUT_FROM = 2 / 3  # share of the run after which a growing share of samples is left out


@dataclass(repr=False)
class Truncated(Annealed, abc.ABC):
    """Estimator by expectation truncation: the base of BSC, TSC, DSC, MCA, MMCA and GSC."""

    n_candidates: int | None = setting(
        None,
        "The candidates H' of a sample, the components that may be on together; None = the "
        "model's usual number, 8 or 7.",
        least=1,
    )
    max_active: int | None = setting(
        None,
        "The largest number gamma of candidates that are on together; None = the model's usual "
        "number, 5 or 4.",
        least=1,
    )
    data_cut: bool = setting(
        True,
        "In the last third of the steps leave out samples that more than gamma causes explain.",
    )

    _usual: ClassVar[tuple[int, int]] = (8, 5)  # defaults of n_candidates and max_active

    def _values(self) -> tuple[float, ...]:
        return (1.0,)

    def _check(self, shards: RowShards) -> None:
        """Raise ConfigError for impossible numbers of candidates and active causes."""
        super()._check(shards)
        width, active = self._sizes()
        if width > self.n_components:
            want = f"at most n_components={self.n_components}"
            raise ConfigError("n_candidates", got=width, want=want, fix="Lower it.")
        between("n_candidates", width, 1, self.n_components)
        between("max_active", active, 1, width)

    def _sizes(self) -> tuple[int, int]:
        """Return the number of candidates of a sample, and of causes that are on at most."""
        usual, default_active = self._usual
        width = min(usual, self.n_components) if self.n_candidates is None else self.n_candidates
        return width, min(default_active, width) if self.max_active is None else self.max_active

    def _states(self) -> States:
        return States(*self._sizes(), self._values())

    def _cut(self, params: Params, step: int) -> float:
        """Return the share of samples to leave out, which grows to 1 - P(<= max_active causes)."""
        ramp = (step / self.n_iter - CUT_FROM) / (1 - CUT_FROM)
        return max(0.0, ramp) * (1 - self._within(params)) if self.data_cut else 0.0

    def _within(self, params: Params) -> float:
        """Return P(at most max_active causes are on)."""
        return float(count_of_causes(self._shares(params))[: self._sizes()[1] + 1].sum())

    def _shares(self, params: Params) -> Array:
        """Return P(cause h is on), (H,)."""
        return np.full(len(params["W"]), params["prior"].sum())

    def _prior_correction(self, params: Params) -> float:
        """Return pi H A / B, which corrects shares of causes for the samples left out."""
        if not self.data_cut:
            return 1.0
        within = count_of_causes(self._shares(params))[: self._sizes()[1] + 1]
        # B: the sum of g P(g causes) over g up to max_active.
        mean_count = float((np.arange(len(within)) * within).sum())
        return float(self._shares(params).sum()) * float(within.sum()) / mean_count
