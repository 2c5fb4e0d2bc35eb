"""Density of a softmax-gated mixture of linear Gaussian experts, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from scipy.special import expit, log_softmax, logsumexp, ndtr

Array = np.ndarray


class Parameters(NamedTuple):
    """Parameters of k experts with d features; the gate of the last expert is 0.

    gate: beta_1, (k, d); bias: beta_0, (k,); tau: the temperature;
    slope: a, (k, d); intercept: b, (k,); variance: nu, (k,).
    """

    gate: Array
    bias: Array
    tau: float
    slope: Array
    intercept: Array
    variance: Array


def _gelu(z: Array) -> tuple[Array, Array]:
    """Return GELU and its derivative."""
    density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    return z * ndtr(z), ndtr(z) + z * density


def _sigmoid(z: Array) -> tuple[Array, Array]:
    """Return the sigmoid and its derivative."""
    s = expit(z)
    return s, s * (1 - s)


def _tanh(z: Array) -> tuple[Array, Array]:
    """Return tanh and its derivative."""
    t = np.tanh(z)
    return t, 1 - t * t


GATES: Mapping[str, Callable[[Array], tuple[Array, Array]]] = MappingProxyType(
    {"linear": lambda z: (z, np.ones_like(z)), "sigmoid": _sigmoid, "tanh": _tanh, "gelu": _gelu}
)
"""Activations phi of a gate by name: each returns phi and its derivative."""


def log_gates(params: Parameters, gate: str, x: Array) -> Array:
    """Compute the log gates, log softmax(phi(x beta_1) / tau + beta_0).  (n, d) -> (n, k)."""
    return log_softmax(GATES[gate](x @ params.gate.T)[0] / params.tau + params.bias, axis=1)


def means(params: Parameters, x: Array) -> Array:
    """Compute the experts' means, a^T x + b.  x: (n, d) -> (n, k)."""
    return x @ params.slope.T + params.intercept


def log_joint(params: Parameters, gate: str, x: Array, y: Array) -> Array:
    """Compute log of gate times density, for each expert.  x: (n, d); y: (n,).  -> (n, k)."""
    off = y[:, None] - means(params, x)
    normal = -0.5 * (np.log(2 * np.pi * params.variance) + off * off / params.variance)
    return log_gates(params, gate, x) + normal


def log_density(params: Parameters, gate: str, x: Array, y: Array) -> Array:
    """Compute log p(y | x).  x: (n, d), y: (n,) -> (n,)."""
    return np.asarray(logsumexp(log_joint(params, gate, x, y), axis=1))


def draw(params: Parameters, gate: str, x: Array, random: np.random.Generator) -> Array:
    """Sample y for each row of x.  x: (n, d).  -> (n,)."""
    # an expert by inverse transform sampling, then a Gaussian around its mean
    uniform = random.random((len(x), 1))
    expert = (np.exp(log_gates(params, gate, x)).cumsum(axis=1)[:, :-1] < uniform).sum(axis=1)
    mean = means(params, x)[np.arange(len(x)), expert]
    return mean + np.sqrt(params.variance[expert]) * random.standard_normal(len(x))


def gradient(params: Parameters, gate: str, x: Array, y: Array) -> tuple[float, Parameters]:
    """Compute the mean of log p(y | x), and its derivatives in the fields of `Parameters`.

    params: the mixture's; gate: name of the gating function; x: (n, d); y: (n,). The derivatives
      are by gate, bias, log tau, slope, intercept and log variance. They include those by the last
      expert's gate and bias, although these stay at 0.
    """
    z = x @ params.gate.T  # (n, k)
    phi, slope = GATES[gate](z)
    log_pi = log_softmax(phi / params.tau + params.bias, axis=1)
    off = y[:, None] - means(params, x)
    scaled = off / params.variance
    joint = log_pi - 0.5 * (np.log(2 * np.pi * params.variance) + off * scaled)
    total = np.asarray(logsumexp(joint, axis=1))
    # the derivatives of log p are sums over experts, weighted by responsibilities
    share = np.exp(joint - total[:, None])  # responsibilities
    pull = share - np.exp(log_pi)  # d log p / d logit
    n, push = len(x), share * scaled
    return float(total.mean()), Parameters(
        (pull * slope / params.tau).T @ x / n,
        pull.mean(axis=0),
        float(-(pull * phi).sum() / params.tau / n),
        push.T @ x / n,
        push.mean(axis=0),
        (0.5 * (push * off - share)).mean(axis=0),
    )
