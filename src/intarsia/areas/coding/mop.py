"""Mixture of Poisson distributions, MoP (arXiv:1908.06843), for counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import gammaln

from ...core.errors import ConfigError
from ...core.schema import setting
from .annealed import Params
from .bsc import coding
from .mixture import AnnealedMixture
from .samples import not_negative
from .shards import RowShards
from .states import Array

FLOOR = 1e-9  # least rate, as a share of the mean one: the logarithm of 0 would rule a count out


@dataclass(repr=False)
class MoP(AnnealedMixture):
    """Mixture of Poisson distributions: y_d ~ Poisson(W_hd) with probability pi_h of h.

    log p(y | h) = sum_d y_d log W_hd - W_hd - log y_d!; then pi_h = mean q_h and
    W_h = sum q_h y / sum q_h, q_h being the posterior of h.

    `transform` gives q, (n, H); `predict` the likeliest component; `denoise` sum_h q_h W_h.

    Fitted: as in `BSC`, components_ W (H, D) and prior_ pi (H,).
    Raises: ConfigError by `fit` for an impossible setting; DataError for negative data, constant
    data, and fewer samples than components.
    Source: arXiv:1908.06843.
    Not for counts that vary more than a Poisson's, nor for missing values.
    """

    total: float | None = setting(
        None,
        "The sum A, above D, to which every sample is scaled, y' = (A - D) y / sum y + 1, and "
        "every W_h with it, so that the length of a sample decides nothing (Keck, Savin and "
        "Luecke, 2012); `denoise` and `inverse_transform` give scaled samples then. None = the "
        "counts as they are.",
    )
    temperature: float = setting(
        10.0,
        "The temperature T at the start, which divides the log-likelihood and the prior, and "
        "falls to 1 in the first 80 % of the steps.",
        least=1,
    )

    _fitted: ClassVar[Mapping[str, str]] = {"W": "components_", "prior": "prior_"}

    def _check(self, shards: RowShards) -> None:
        """Raise ConfigError for impossible settings; `total` must exceed the number of features."""
        super()._check(shards)
        if self.total is not None and not self.total > self.n_features_in_:
            want, fix = f"above the {self.n_features_in_} features", "Try ten times as many."
            raise ConfigError("total", got=self.total, want=want, fix=fix)

    def _read(self, X: Any, first: bool = False, least: int = 1) -> Array:
        """Check that data are not negative; scale each row to the sum `total` if there is one."""
        x = not_negative(super()._read(X, first, least), "MoG, whose components have signs")
        if self.total is None:
            return x
        # y' = (A - D) y / sum y + 1
        length = np.maximum(x.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        return (self.total - x.shape[1]) * x / length + 1

    def _start(self, mean: Array, spread: float, random: np.random.RandomState) -> Params:
        atoms = self.n_components
        w = mean + random.standard_normal((atoms, len(mean))) * spread / 4
        least = np.array(FLOOR * mean.mean())
        return {
            # Rates are above 0: a rate of 0 would rule its counts out for ever.
            "W": np.maximum(w, mean / 4 + least),
            "prior": np.full(atoms, 1 / atoms),
            "least": least,
        }

    def _densities(self, params: Params, x: Array) -> Array:
        """Compute each sample's log-probability by component, independent Poissons: (n, H)."""
        w = params["W"]
        return x @ np.log(w).T - w.sum(axis=1) - gammaln(x + 1).sum(axis=1, keepdims=True)

    def _maximise_components(self, params: Params, sums: Params) -> Params:
        """Compute the new means W = sum q y / sum q; an unused component keeps its old one."""
        used = sums["usage"][:, None]
        w = np.where(used > 1e-6, sums["qy"] / np.maximum(used, 1e-300), params["W"])
        if self.total is not None:
            # components keep the common length A of all samples
            w *= self.total / w.sum(axis=1, keepdims=True)
        return {"W": np.maximum(w, params["least"]), "least": params["least"]}

    def _restart(self, params: Params, atom: int, row: Array, residual: Array) -> None:
        super()._restart(params, atom, (row + params["W"].mean(axis=0)) / 2, residual)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags


CARD = coding(
    "mop",
    config=MoP,
    summary="A mixture of Poisson distributions for counts, by EM with a falling temperature.",
    names=("Mixture of Poissons", "Poisson mixture"),
)
