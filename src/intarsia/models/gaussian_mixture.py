"""The density of a softmax-gated mixture of linear Gaussian experts, and its gradient."""

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
    density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    return z * ndtr(z), ndtr(z) + z * density


def _sigmoid(z: Array) -> tuple[Array, Array]:
    s = expit(z)
    return s, s * (1 - s)


def _tanh(z: Array) -> tuple[Array, Array]:
    t = np.tanh(z)
    return t, 1 - t * t


GATES: Mapping[str, Callable[[Array], tuple[Array, Array]]] = MappingProxyType(
    {"linear": lambda z: (z, np.ones_like(z)), "sigmoid": _sigmoid, "tanh": _tanh, "gelu": _gelu}
)
"""phi and its derivative, by name."""


def log_gates(at: Parameters, gate: str, x: Array) -> Array:
    """log softmax(phi(x beta_1) / tau + beta_0).  x: (n, d) -> (n, k)."""
    return log_softmax(GATES[gate](x @ at.gate.T)[0] / at.tau + at.bias, axis=1)


def means(at: Parameters, x: Array) -> Array:
    """The experts' means, a^T x + b.  x: (n, d) -> (n, k)."""
    return x @ at.slope.T + at.intercept


def log_joint(at: Parameters, gate: str, x: Array, y: Array) -> Array:
    """log of gate times density, per expert.  x: (n, d), y: (n,) -> (n, k)."""
    off = y[:, None] - means(at, x)
    normal = -0.5 * (np.log(2 * np.pi * at.variance) + off * off / at.variance)
    return log_gates(at, gate, x) + normal


def log_density(at: Parameters, gate: str, x: Array, y: Array) -> Array:
    """log p(y | x).  x: (n, d), y: (n,) -> (n,)."""
    return np.asarray(logsumexp(log_joint(at, gate, x, y), axis=1))


def draw(at: Parameters, gate: str, x: Array, random: np.random.Generator) -> Array:
    """Sample y for each row of x.  (n, d) -> (n,)."""
    uniform = random.random((len(x), 1))
    chosen = (np.exp(log_gates(at, gate, x)).cumsum(axis=1)[:, :-1] < uniform).sum(axis=1)
    mean = means(at, x)[np.arange(len(x)), chosen]
    return mean + np.sqrt(at.variance[chosen]) * random.standard_normal(len(x))


def gradient(at: Parameters, gate: str, x: Array, y: Array) -> tuple[float, Parameters]:
    """The mean of log p(y | x), and its derivatives by gate, bias, log tau, slope, intercept and
    log variance, in the fields of `Parameters`.

    They include the derivatives by the last expert's gate and bias, which stay at 0.
    """
    z = x @ at.gate.T  # (n, k)
    phi, slope = GATES[gate](z)
    log_pi = log_softmax(phi / at.tau + at.bias, axis=1)
    off = y[:, None] - means(at, x)
    scaled = off / at.variance
    joint = log_pi - 0.5 * (np.log(2 * np.pi * at.variance) + off * scaled)
    total = np.asarray(logsumexp(joint, axis=1))
    share = np.exp(joint - total[:, None])  # responsibilities
    pull = share - np.exp(log_pi)  # d log p / d logit
    n, push = len(x), share * scaled
    return float(total.mean()), Parameters(
        (pull * slope / at.tau).T @ x / n,
        pull.mean(axis=0),
        float(-(pull * phi).sum() / at.tau / n),
        push.T @ x / n,
        push.mean(axis=0),
        (0.5 * (push * off - share)).mean(axis=0),
    )
