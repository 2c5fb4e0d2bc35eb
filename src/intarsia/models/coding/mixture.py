"""Mixtures: exactly one component is on in a sample (arXiv:1908.06843, section 2)."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .annealed import Annealed, At, Joint
from .samples import Samples
from .states import Array, States


@dataclass(repr=False)
class AnnealedMixture(Annealed, abc.ABC):
    """y ~ p(y | W_h) with probability pi_h: the base of MoG and MoP."""

    _missing: ClassVar[bool] = False

    @property
    def _anneals_prior(self) -> bool:
        return True

    @abc.abstractmethod
    def _densities(self, at: At, x: Array) -> Array:
        """log p(y | W_h).  (n, D) -> (n, H)."""

    @abc.abstractmethod
    def _maximise_components(self, at: At, sums: At) -> At:
        """The parameters of the components after a step, from sums weighted by q."""

    def predict(self, X: Any) -> Array:
        """The likeliest component of each sample.  (n, D) -> (n,)."""
        return self.transform(X).argmax(axis=1)

    def _states(self) -> States:
        return States(1, 1)

    def _cells(self, states: States) -> int:
        return self.n_components * self.n_features_in_

    def _joint(self, at: At, block: Samples, states: States, heat: float = 1.0) -> Joint:
        n = len(block.x)
        none = np.full((n, 1), -np.inf)  # no sample is without a component
        likelihood = np.concatenate([none, self._densities(at, block.x)], axis=1)
        prior = np.concatenate([[0.0], np.log(at["prior"])])
        return Joint(likelihood, prior, np.zeros((n, 1), np.int64))

    def _sums(
        self, at: At, block: Samples, joint: Joint, q: Array, states: States, heat: float
    ) -> At:
        share = self._code(at, joint, q, states)
        return {"usage": share.sum(0), "qy": share.T @ block.x}

    def _maximise(self, at: At, sums: At) -> At:
        share = np.maximum(sums["usage"], 1e-8 * sums["samples"])
        return self._maximise_components(at, sums) | {"prior": share / share.sum()}

    def _code(self, at: At, joint: Joint, q: Array, states: States) -> Array:
        return q[:, 1:]

    def _reborn(self, at: At, atom: int, row: Array, residual: Array) -> None:
        at["W"][atom] = row
        at["prior"][atom] = at["prior"].mean()
        at["prior"] /= at["prior"].sum()
