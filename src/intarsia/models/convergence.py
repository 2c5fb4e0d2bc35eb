"""Convergence rates of maximum likelihood for a Gaussian mixture of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.checks import one_of
from ..core.errors import ConfigError
from .gaussian_mixture import GATES, Array, Parameters, draw
from .gaussian_moe import SoftmaxGaussianMoE

TRUTH = Parameters(
    gate=np.array([[4.0], [0.0]]),
    bias=np.array([-1.0, 0.0]),
    tau=0.5,
    slope=np.array([[1.5], [-1.0]]),
    intercept=np.array([0.5, -0.5]),
    variance=np.array([0.09, 0.16]),
)
"""Parameters of two experts with one feature, the default truth of a study."""


def voronoi(fitted: Parameters, truth: Parameters) -> dict[str, float]:
    """Compute Voronoi losses: distances of fitted experts to the nearest true ones.

    fitted, truth: parameters of a fitted and of the true mixture: beta_1, beta_0 and tau of the
      gate, slope a, intercept b and variance nu of each expert. Each fitted expert belongs to the
      true expert with the nearest (a, b, nu), so the order of experts does not matter; a true
      expert with its fitted ones is a Voronoi cell. D of some parameters is the sum over fitted
      experts of exp(beta_0) times their distance from the true ones, to the power 1 in a cell of
      one fitted expert and 2 in a cell of several.
    Returns "gate": D of beta_1, plus |tau - tau*|; "ratio": D of beta_1 / tau; "experts": D of (a,
      b, nu); "mass": sum over cells of |sum exp(beta_0) - exp(beta_0*)|; * = of the truth.
    """
    ours, theirs = (np.column_stack([p.slope, p.intercept, p.variance]) for p in (fitted, truth))
    # the Voronoi cell of each fitted expert: the nearest true one
    cell = np.square(ours[:, None] - theirs[None]).sum(axis=2).argmin(axis=1)
    members = np.bincount(cell, minlength=len(theirs))
    # experts that share a cell converge more slowly: their distance is squared
    power = np.where(members[cell] > 1, 2, 1)
    mass = np.exp(fitted.bias)

    def distance(a: Array, b: Array) -> float:
        return float((mass * np.linalg.norm(a - b[cell], axis=1) ** power).sum())

    sums = np.bincount(cell, weights=mass, minlength=len(theirs))
    return {
        "gate": distance(fitted.gate, truth.gate) + abs(fitted.tau - truth.tau),
        "ratio": distance(fitted.gate / fitted.tau, truth.gate / truth.tau),
        "experts": distance(ours, theirs),
        "mass": float(np.abs(sums - np.exp(truth.bias)).sum()),
    }


@dataclass(frozen=True)
class Convergence:
    """Result of a study.

    sizes: n; errors: name -> the median over replicates at each n; starts: the same for the starts
    of the searches, which no data have moved.
    """

    sizes: tuple[int, ...]
    errors: Mapping[str, tuple[float, ...]]
    starts: Mapping[str, tuple[float, ...]]

    def slope(self, name: str, *, start: bool = False) -> float:
        """Return the slope of log error against log n; -1/2 is the parametric rate.

        start: take the errors of the starts, where the slope is 0 but for chance.
        """
        errors = (self.starts if start else self.errors)[name]
        return float(np.polyfit(np.log(self.sizes), np.log(errors), 1)[0])


def convergence_study(
    gate: str,
    *,
    truth: Parameters = TRUTH,
    sizes: Sequence[int] = (1000, 4000, 16000, 64000),
    replicates: int = 10,
    noise: float = 0.2,
    reach: float = 2.0,
    seed: int = 0,
    report: Callable[[str], None] = lambda _: None,
) -> Convergence:
    """Fit samples of a known mixture at several n and measure the Voronoi losses.

    gate: activation of the gate, such as "linear"; truth: parameters that the samples are drawn
      from; sizes: n, numbers of samples; replicates: fits for each n; noise: distance of a start
      from the truth; reach: x ~ U(-reach, reach) in each feature; seed: of all draws; report: a
      function that receives a line of text for each n.
    A search starts near the truth: the gate is multiplied by 1 + noise N(0, 1); noise N(0, 1) is
    added to the experts and to the logs of temperature and variances. Compare slopes, not errors: a
    parameter that cannot be identified stays at its start, which is near the truth.
    Raises: ConfigError for another gate, fewer than two sizes or no replicate.
    """
    one_of("gate", gate, GATES)
    if len(set(sizes)) < 2 or replicates < 1:
        got = f"{tuple(sizes)}, {replicates} replicates"
        fix = "Use four sizes and ten replicates for a slope."
        raise ConfigError("sizes", got=got, want="two sizes or more", fix=fix)
    random = np.random.default_rng(seed)
    fitted, starts = _Medians(truth), _Medians(truth)
    for n in sizes:
        ends, begins = list[Parameters](), list[Parameters]()
        for _ in range(replicates):
            # one replicate: a sample of the truth, and a search that starts near it
            x = random.uniform(-reach, reach, (n, truth.gate.shape[1]))
            y = draw(truth, gate, x, random)
            model = SoftmaxGaussianMoE(len(truth.bias), gate)
            begins.append(_near(truth, noise, random))
            ends.append(model.fit(x, y, start=begins[-1]).parameters)
        starts.add(begins)
        report(f"{gate}, n = {n}: " + ", ".join(f"{k} {v:.4f}" for k, v in fitted.add(ends)))
    return Convergence(tuple(sizes), fitted.by_name(), starts.by_name())


class _Medians:
    """Medians over replicates of the Voronoi losses, by name and size."""

    def __init__(self, truth: Parameters) -> None:
        self.truth, self.rows = truth, list[dict[str, float]]()

    def add(self, replicates: Sequence[Parameters]) -> Iterable[tuple[str, float]]:
        """Add the replicates of a size; return each name with its median."""
        losses = [voronoi(parameters, self.truth) for parameters in replicates]
        # the median is robust to searches that end elsewhere
        self.rows.append(
            {name: float(np.median([row[name] for row in losses])) for name in losses[0]}
        )
        return self.rows[-1].items()

    def by_name(self) -> dict[str, tuple[float, ...]]:
        """Return the medians of all sizes, by name."""
        return {name: tuple(row[name] for row in self.rows) for name in self.rows[0]}


def _near(truth: Parameters, noise: float, random: np.random.Generator) -> Parameters:
    """Perturb the true parameters as a start of the search, see `convergence_study`."""

    def off(like: Array | float) -> Array:
        return noise * random.standard_normal(np.shape(like))

    return Parameters(
        truth.gate * (1 + off(truth.gate)),
        truth.bias * (1 + off(truth.bias)),
        # Positive parameters are perturbed in their logarithm.
        truth.tau * float(np.exp(off(0.0))),
        truth.slope + off(truth.slope),
        truth.intercept + off(truth.intercept),
        truth.variance * np.exp(off(truth.variance)),
    )
