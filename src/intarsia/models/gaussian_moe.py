"""Maximum likelihood of a softmax-gated mixture of linear Gaussian experts (arXiv:2401.13875)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from ..core import Card, Paper
from ..core.errors import ShapeError
from ..core.schema import check, setting
from .gaussian_mixture import (
    GATES,
    Array,
    Parameters,
    gradient,
    log_density,
    log_gates,
    log_joint,
    means,
)

TEMPERATURES = ("learn", "fixed")
FLOOR = 1e-6  # least variance, in units of y's; the density of one sample is unbounded


@dataclass(repr=False)
class SoftmaxGaussianMoE(RegressorMixin, BaseEstimator):
    """Model p(y | x) = sum_i softmax_i(phi(beta_1i^T x) / tau + beta_0i) N(y; a_i^T x + b_i, nu_i).

    The gate of the last expert is 0, so that a density has one set of parameters. L-BFGS stops when
    the gradient of the mean log-likelihood is at most tol, or a step gains less than 1e-6 tol.

    Fitted: gate_ (k, d), bias_ (k,), tau_, coef_ (k, d), intercept_ (k,), variance_ (k,),
    log_likelihood_ (the mean over samples), n_iter_. In double precision; variances are at least
    1e-6 times the variance of y. Estimators with equal settings are equal.

    Raises: ConfigError by `fit` for an impossible setting; ShapeError for a start of another shape.
    Source: arXiv:2401.13875.
    Not with gate="linear" and temperature="learn" if beta_1 or tau matter: the density is the same
    for (c beta_1, c tau) with any c, so data determine only beta_1 / tau.
    """

    n_experts: int = setting(2, "The number k of experts.", least=1, fix="Try 4.")
    gate: str = setting(
        "sigmoid",
        'The function phi: "linear" (the dense-to-sparse gate), "sigmoid", "tanh" or "gelu" '
        "(the activation gate).",
        choices=tuple(GATES),
    )
    temperature: str = setting(
        "learn", 'The temperature tau: "learn" it, or keep it "fixed".', choices=TEMPERATURES
    )
    tau: float = setting(
        1.0, "The first value of the temperature, or its fixed one.", above=0, fix="Try 1."
    )
    n_init: int = setting(
        4,
        "The number of random starts; the most likely result is kept.",
        least=1,
        fix="Try 4.",
    )
    max_iter: int = setting(500, "The iterations of L-BFGS at most.", least=1, fix="Try 4.")
    tol: float = setting(
        1e-6,
        "The gradient of the mean log-likelihood at which L-BFGS stops.",
        above=0,
        fix="Try 1e-6.",
    )
    random_state: int | np.random.RandomState | None = setting(
        None, "The seed of the starts, or a RandomState; None = other starts each time."
    )

    def fit(self, X: Any, y: Any, *, start: Parameters | None = None) -> SoftmaxGaussianMoE:
        """Fit the mixture by maximum likelihood, from one or several starts.

        X: (n, d); y: (n,); start: begin a single search here, instead of at random starts.
        """
        self._check()
        x, y = cast(
            tuple[Array, Array],
            validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2),
        )
        y = y.astype(np.float64)
        # search in units of each spread, so that tolerances do not depend on the data's
        # x keeps its zero, since phi(beta_1^T x) has no constant that takes up a shift
        unit = _Unit.of(x, y)
        x, y = x / unit.x, (y - unit.mean) / unit.y
        if start is None:
            random = check_random_state(self.random_state)
            starts = [self._guess(x, y, random) for _ in range(self.n_init)]
        else:
            _check_start(start, self.n_experts, x.shape[1])
            starts = [unit.into(start)]
        searches = [self._search(x, y, first) for first in starts]
        # of several local maxima keep the most likely one
        likelihood, best, self.n_iter_, done = max(searches, key=lambda f: f[0])
        if not done:
            warnings.warn(
                f"not converged in max_iter={self.max_iter}", ConvergenceWarning, stacklevel=2
            )
        best = unit.back(best)
        self.gate_, self.bias_, self.tau_, self.coef_, self.intercept_, self.variance_ = best
        # a density in the data's unit of y is that much smaller
        self.log_likelihood_ = likelihood - np.log(unit.y)
        return self

    @property
    def parameters(self) -> Parameters:
        """The fitted parameters of the mixture: gates, experts and variances."""
        check_is_fitted(self)
        return Parameters(
            self.gate_, self.bias_, self.tau_, self.coef_, self.intercept_, self.variance_
        )

    def predict(self, X: Any) -> Array:
        """Predict the mean of y.  (n, d) -> (n,)."""
        x = self._read(X)
        return (self.gates(x) * means(self.parameters, x)).sum(axis=1)

    def gates(self, X: Any) -> Array:
        """Compute the prior share of each expert, given x alone.  X: (n, d) -> (n, k)."""
        return np.exp(log_gates(self.parameters, self.gate, self._read(X)))

    def responsibilities(self, X: Any, y: Any) -> Array:
        """Compute the posterior share of each expert, given x and y.

        X: (n, d); y: (n,).  -> (n, k).
        """
        x = self._read(X)
        return softmax(log_joint(self.parameters, self.gate, x, _targets(y, x)), axis=1)

    def score_samples(self, X: Any, y: Any = None) -> Array:
        """Compute log p(y | x) of each sample.

        X: (n, d); y: (n,), None = the prediction.  -> (n,).
        """
        x = self._read(X)
        y = self.predict(x) if y is None else _targets(y, x)
        return log_density(self.parameters, self.gate, x, y)

    def _read(self, X: Any) -> Array:
        check_is_fitted(self)
        return cast(Array, validate_data(self, X, reset=False, dtype=np.float64))

    def _check(self) -> None:
        check(self)

    def _guess(self, x: Array, y: Array, random: np.random.RandomState) -> Parameters:
        """Draw a start: experts by least squares on slices of x along a random direction."""
        # x: (n, d) and y: (n,), standardised
        k, (n, d) = self.n_experts, x.shape
        # ranks of the projections: k slices of equal size
        place = (x @ random.standard_normal(d)).argsort().argsort()
        slices = place * k // n
        coef = np.zeros((k, d + 1))
        variance = np.ones(k)
        design = np.column_stack([x, np.ones(n)])
        for i in range(k):
            rows = slices == i
            if rows.any():
                coef[i] = np.linalg.lstsq(design[rows], y[rows], rcond=None)[0]
                # A slice that a line fits exactly would start with a variance of 0.
                variance[i] = max(0.05, np.square(y[rows] - design[rows] @ coef[i]).mean())
        gate = random.standard_normal((k, d)) / np.sqrt(d)
        # softmax sees differences alone, so that one row can be fixed
        gate[-1] = 0
        return Parameters(gate, np.zeros(k), self.tau, coef[:, :d], coef[:, d], variance)

    def _search(self, x: Array, y: Array, start: Parameters) -> tuple[float, Parameters, int, bool]:
        """Maximise from a start; return mean log-likelihood, parameters, steps, and success."""
        # x: (n, d) and y: (n,), standardised; start: parameters in the same units
        learn, tau = self.temperature == "learn", start.tau

        def loss(vector: Array) -> tuple[float, Array]:
            """Compute minus the mean log-likelihood, and its gradient, for the free parameters."""
            params = _unpack(vector, self.n_experts, x.shape[1], None if learn else tau)
            value, slopes = gradient(params, self.gate, x, y)
            return -value, -_pack(slopes, learn)

        # log tau and log variances are unconstrained, but for the floor
        logs = start._replace(tau=np.log(tau), variance=np.log(np.maximum(start.variance, FLOOR)))
        vector = _pack(logs, learn)
        free = len(vector) - self.n_experts
        # only the variances, last in the vector, are bounded
        bounds = [(None, None)] * free + [(np.log(FLOOR), None)] * self.n_experts
        options = {"maxiter": self.max_iter, "gtol": self.tol, "ftol": 1e-6 * self.tol}
        result = minimize(loss, vector, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        best = _unpack(result.x, self.n_experts, x.shape[1], None if learn else tau)
        # it has also converged when no step improves in double precision
        return -float(result.fun), best, max(1, int(result.nit)), int(result.nit) < self.max_iter


def _targets(y: Any, x: Array) -> Array:
    """Convert y to (n,) float64.  x: (n, d), for n."""
    targets = np.asarray(y, dtype=np.float64)
    if targets.shape != (len(x),):
        fix = "Give one number for each sample."
        raise ShapeError("y", got=targets.shape, want=(len(x),), fix=fix)
    return targets


class _Unit:
    """Units that standardise x and y for the search; the maximum does not depend on them."""

    def __init__(self, x: Array, mean: float, y: float) -> None:
        self.x, self.mean, self.y = x, mean, y

    @classmethod
    def of(cls, x: Array, y: Array) -> _Unit:
        """Take the mean of y and the standard deviations of x and y, 1 for constant data."""
        scale = x.std(axis=0)
        return cls(np.where(scale > 0, scale, 1.0), float(y.mean()), float(y.std()) or 1.0)

    def into(self, params: Parameters) -> Parameters:
        """Convert a mixture's parameters from the data's units to units of standardised data."""
        return params._replace(
            gate=params.gate * self.x,
            slope=params.slope * self.x / self.y,
            intercept=(params.intercept - self.mean) / self.y,
            variance=params.variance / self.y**2,
        )

    def back(self, params: Parameters) -> Parameters:
        """Convert a mixture's parameters from the units of standardised data back to the data's."""
        return params._replace(
            gate=params.gate / self.x,
            slope=params.slope * self.y / self.x,
            intercept=params.intercept * self.y + self.mean,
            variance=params.variance * self.y**2,
        )


def _pack(params: Parameters, learn: bool) -> Array:
    """Join the free parameters in a vector: no last gate, no fixed tau."""
    tau = [np.atleast_1d(params.tau)] if learn else []
    free = [
        params.gate[:-1].ravel(),
        params.bias[:-1],
        *tau,
        params.slope.ravel(),
        params.intercept,
        params.variance,
    ]
    return np.concatenate(free)


def _unpack(vector: Array, k: int, d: int, tau: float | None) -> Parameters:
    """Convert a vector of free parameters, with log tau and log variance, to `Parameters`."""
    sizes = [(k - 1) * d, k - 1, int(tau is None), k * d, k, k]
    gate, bias, log_tau, slope, intercept, variance = np.split(vector, np.cumsum(sizes)[:-1])
    gate = np.vstack([gate.reshape(k - 1, d), np.zeros((1, d))])
    tau = float(np.exp(log_tau[0])) if tau is None else tau
    return Parameters(
        gate, np.append(bias, 0.0), tau, slope.reshape(k, d), intercept, np.exp(variance)
    )


def _check_start(start: Parameters, k: int, d: int) -> None:
    shapes = [(k, d), (k,), (), (k, d), (k,), (k,)]
    got = [np.shape(part) for part in start]
    positive = start.tau > 0 and bool((np.asarray(start.variance) > 0).all())
    last_zero = got == shapes and not start.gate[-1].any() and start.bias[-1] == 0
    if not (last_zero and positive):
        want = f"{shapes}, tau and variances above 0, the last gate 0"
        fix = "Subtract the last expert's gate from all gates."
        raise ShapeError("start", got=got, want=want, fix=fix)


CARD = Card(
    "gaussian_moe",
    kind="model",
    config=SoftmaxGaussianMoE,
    paper=Paper(
        "2401.13875",
        2024,
        "Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?",
    ),
    tiny={"n_init": 1, "max_iter": 60, "random_state": 0},
    summary="A regression by linear experts behind a softmax gate, fitted by maximum likelihood.",
    family="estimators",
    names=("Softmax Gaussian MoE", "Gaussian mixture of experts", "Temperature"),
)
