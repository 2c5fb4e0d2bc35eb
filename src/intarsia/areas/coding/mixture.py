"""Mixtures, in which each sample has exactly one component (arXiv:1908.06843, section 2)."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .annealed import Annealed, Params
from .samples import Samples
from .states import Array, Joint, States


@dataclass(repr=False)
class AnnealedMixture(Annealed, abc.ABC):
    """Mixture y ~ p(y | W_h) with probability pi_h: the base of MoG and MoP."""

    _missing: ClassVar[bool] = False

    @property
    def _anneals_prior(self) -> bool:
        return True  # the whole log p(s, y) is divided by the temperature

    @abc.abstractmethod
    def _densities(self, params: Params, x: Array) -> Array:
        """Compute log p(y | W_h).  x: (n, D) -> (n, H)."""

    @abc.abstractmethod
    def _maximise_components(self, params: Params, sums: Params) -> Params:
        """Return the components' parameters after a step, from sums weighted by q."""

    def predict(self, X: Any) -> Array:
        """Return the most probable component of each sample.  (n, D) -> (n,)."""
        return self.transform(X).argmax(axis=1)

    def _states(self) -> States:
        # no state of several causes: exactly one component is on in a sample
        return States(1, 1)

    def _block_numbers(self, states: States) -> int:
        # the distances of a sample to all components, feature by feature
        return self.n_components * self.n_features_in_

    def _joint(
        self, params: Params, block: Samples, states: States, temperature: float = 1.0
    ) -> Joint:
        """Compute log p(y | h), (n, 1 + H), and log p(h), (1 + H,), of each component h."""
        n = len(block.x)
        none = np.full((n, 1), -np.inf)  # no sample is without a component
        likelihood = np.concatenate([none, self._densities(params, block.x)], axis=1)
        # the state without a cause has likelihood 0, so that its prior does not matter
        prior = np.concatenate([[0.0], np.log(params["prior"])])
        return Joint(likelihood, prior, np.zeros((n, 1), np.int64))

    def _sums(
        self,
        params: Params,
        block: Samples,
        joint: Joint,
        q: Array,
        states: States,
        temperature: float,
    ) -> Params:
        """Sum the statistics of the M-step: "usage" (H,), sum of q, and "qy" (H, D), sum of q y."""
        # q: (n, 1 + H), posterior of the components
        share = self._code(params, joint, q, states)
        return {"usage": share.sum(0), "qy": share.T @ block.x}

    def _maximise(self, params: Params, sums: Params) -> Params:
        """Do the M-step: return the components' parameters and their prior probabilities."""
        share = np.maximum(sums["usage"], 1e-8 * sums["samples"])
        return self._maximise_components(params, sums) | {"prior": share / share.sum()}

    def _code(self, params: Params, joint: Joint, q: Array, states: States) -> Array:
        return q[:, 1:]

    def _restart(self, params: Params, atom: int, row: Array, residual: Array) -> None:
        params["W"][atom] = row
        params["prior"][atom] = params["prior"].mean()
        params["prior"] /= params["prior"].sum()
