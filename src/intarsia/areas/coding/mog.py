"""Mixture of Gaussians, MoG (arXiv:1908.06843), with the true density of a Gaussian.

The library of the paper leaves out the 1/2 of the Gaussian's exponent, as for GSC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.linalg import solve_triangular

from ...core.schema import setting
from .annealed import Params
from .bsc import coding
from .mixture import AnnealedMixture
from .samples import Samples
from .states import Array, Joint, States

FLOOR = 1e-6  # least variance of a component, as a share of the data's variance


@dataclass(repr=False)
class MoG(AnnealedMixture):
    """Mixture of Gaussians: y ~ N(W_h, Sigma_h) with probability pi_h.

    q_h(y) = pi_h N(y; W_h, Sigma_h) / sum_k pi_k N(y; W_k, Sigma_k); then pi_h = mean q_h,
    W_h = sum q_h y / sum q_h and Sigma_h = sum q_h (y - W_h) (y - W_h)^T / sum q_h.

    The temperature divides the prior, too.
    `transform` gives q, (n, H); `predict` the likeliest component; `denoise` sum_h q_h W_h.

    Fitted: as in `BSC`, components_ W (H, D), prior_ pi (H,), and covariances_, Sigma (H, D, D) or
    its diagonal (H, D); no variance is below 1e-6 of the data's.
    Raises: ConfigError by `fit` for an impossible setting; DataError for constant data and for
    fewer samples than components.
    Source: arXiv:1908.06843.
    EM ends in a local optimum: of several random_state take the one with the highest `score`.
    Not where causes add up (BSC, GSC), nor for missing values.
    """

    covariance: str = setting(
        "full",
        'The form of Sigma_h: "full", or "diagonal", with a variance for each feature.',
        choices=("full", "diagonal"),
    )

    _fitted: ClassVar[Mapping[str, str]] = {
        "W": "components_",
        "prior": "prior_",
        "covariance": "covariances_",
    }

    def _start(self, mean: Array, spread: float, random: np.random.RandomState) -> Params:
        atoms, width = self.n_components, len(mean)
        w = mean + random.standard_normal((atoms, width)) * spread / 4
        variance = np.full((atoms, width), spread**2)
        return {
            "W": w,
            "prior": np.full(atoms, 1 / atoms),
            "covariance": variance if self.covariance == "diagonal" else _diagonals(variance),
            "least": np.array(FLOOR * spread**2),
        }

    def _densities(self, params: Params, x: Array) -> Array:
        """Compute log N(x; W_h, Sigma_h) of each sample x and component h, (n, H)."""
        # "covariance": Sigma (H, D, D) or its diagonal (H, D)
        densities = np.empty((len(x), len(params["W"])))
        for h, (w, sigma) in enumerate(zip(params["W"], params["covariance"], strict=True)):
            if sigma.ndim == 1:
                far, volume = np.square(x - w) @ (1 / sigma), np.log(sigma).sum()
            else:
                # by Cholesky: the Mahalanobis distance, and log det of Sigma
                root = np.linalg.cholesky(sigma)
                far = np.square(solve_triangular(root, (x - w).T, lower=True)).sum(axis=0)
                volume = 2 * np.log(np.diagonal(root)).sum()
            densities[:, h] = -0.5 * (far + volume + x.shape[1] * math.log(2 * math.pi))
        return densities

    def _sums(
        self,
        params: Params,
        block: Samples,
        joint: Joint,
        q: Array,
        states: States,
        temperature: float,
    ) -> Params:
        """Sum the statistics of the M-step over a block, with "second" next to the mixture's."""
        share = self._code(params, joint, q, states)
        # moments about the old W, (H, D, D) or (H, D), which lose no digits for data far from 0
        off = [block.x - w for w in params["W"]]
        if self.covariance == "diagonal":
            second = [r @ np.square(y) for r, y in zip(share.T, off, strict=True)]
        else:
            second = [(r[:, None] * y).T @ y for r, y in zip(share.T, off, strict=True)]
        sums = super()._sums(params, block, joint, q, states, temperature)
        return sums | {"second": np.stack(second)}

    def _maximise_components(self, params: Params, sums: Params) -> Params:
        """Compute the new means and covariances; an unused component keeps its old ones."""
        used = np.maximum(sums["usage"], 1e-300)[:, None]
        alive = sums["usage"][:, None] > 1e-6
        w = np.where(alive, sums["qy"] / used, params["W"])
        moved, full = w - params["W"], params["covariance"].ndim == 3
        alive, used = (alive[..., None], used[..., None]) if full else (alive, used)
        # moments about the new mean: those about the old one less the square of its shift
        shift = moved[:, :, None] * moved[:, None] if full else np.square(moved)
        sigma = np.where(alive, sums["second"] / used - shift, params["covariance"])
        floor = np.full_like(w, params["least"])
        sigma = sigma + _diagonals(floor) if full else np.maximum(sigma, floor)
        return {"W": w, "covariance": sigma, "least": params["least"]}

    def _restart(self, params: Params, atom: int, row: Array, residual: Array) -> None:
        """Set an unused component to a badly explained sample, with the mean covariance."""
        super()._restart(params, atom, row, residual)
        params["covariance"][atom] = params["covariance"].mean(axis=0)


def _diagonals(values: Array) -> Array:
    """Build diagonal matrices.  (H, D) -> (H, D, D)."""
    return values[:, :, None] * np.eye(values.shape[1])


CARD = coding(
    "mog",
    config=MoG,
    summary="A mixture of Gaussians, by EM with a falling temperature.",
    names=("Mixture of Gaussians", "Gaussian mixture"),
)
