"""What maximum likelihood can find of a softmax-gated mixture of experts, as data grow."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from intarsia.models import Convergence, convergence_study

from ..kit import Effect, Report, Result, Study
from ..kit.arms import result_of

GATES = ("linear", "sigmoid")
NAMES = {"gate": "beta_1 and tau", "ratio": "beta_1 / tau", "experts": "a, b, nu", "mass": "mass"}


@lru_cache
def studied(seed: int, report: Report) -> dict[str, Convergence]:
    """Fit mixtures of two Gaussian experts by maximum likelihood, with each kind of gate.

    The samples are drawn from a known mixture, 1,000 to 64,000 of them, in 10 replicates each.
    Returns for each gate, linear or sigmoid, how the errors of the parameters fall with the
    samples.
    """
    return {gate: convergence_study(gate, seed=seed, report=report) for gate in GATES}


def slopes(
    seeds: Sequence[int], report: Report, *, figure: Callable[[dict[str, Convergence]], float]
) -> Result:
    """Return how fast an estimation error falls: the slope of its log against log n.

    The parameters of a softmax-gated mixture of two experts are estimated from n drawn samples.
    -1/2 is the parametric rate, 0 no learning. figure: one seed's fits by gate -> the slope that is
    judged. The figure is the median over seeds.
    """
    # both studies read the same fits
    studies = [studied(seed, report) for seed in seeds]
    values = tuple(figure(study_of_seed) for study_of_seed in studies)
    rows = [
        _row(gate, name, studies, start=start)
        for start in (False, True)
        for gate in GATES
        for name in NAMES
    ]
    note = (
        "Two experts of one feature; x uniform in (-2, 2); beta_1 = 4, beta_0 = -1, tau = 0.5, "
        "a = (1.5, -1), b = (0.5, -0.5), standard deviations (0.3, 0.4). Voronoi errors: medians "
        "over 10 replicates, those of the first and last size the medians of the seeds; each "
        "search starts at the truth with a noise of 0.2."
    )
    return result_of(values, rows, note, statistics.median)


def _row(
    gate: str, name: str, studies: Sequence[dict[str, Convergence]], *, start: bool
) -> dict[str, Any]:
    """Return a table row: how fast one kind of parameter is learned with one gate.

    start: take the searches' starts instead of their ends.
    """
    fits = [study_of_seed[gate] for study_of_seed in studies]
    slopes_of_seeds = [fit.slope(name, start=start) for fit in fits]
    # medians: a search that got stuck would carry a mean away
    errors = [(fit.starts if start else fit.errors)[name] for fit in fits]
    middle = (statistics.median(of_a_seed[index] for of_a_seed in errors) for index in (0, -1))
    first, last = (f"{error:.4f}" for error in middle)
    return {
        "gate": f"{gate}, start" if start else gate,
        "what": NAMES[name],
        "slope": f"{statistics.median(slopes_of_seeds):+.2f}",
        "of each seed": ", ".join(f"{s:+.2f}" for s in slopes_of_seeds),
        "error at the first n": first,
        "at the last n": last,
    }


def _slope(study_of_seed: dict[str, Convergence], gate: str, name: str) -> float:
    """Return one seed's slope for a gate and a kind of parameter (key of NAMES)."""
    return study_of_seed[gate].slope(name)


study = partial(
    Study,
    system="Softmax-Gaussian mixtures",
    arxiv="2401.13875",
    work="drawn mixtures of two experts",
    unit="slope of log error against log n",
    seeds=tuple(range(10, 20)),
)

STUDIES = (
    study(
        "gaussian-moe",
        question="How fast do errors fall with an activation inside the gate?",
        effect=Effect(
            "as a power of the number n of samples, n^(-1/2)",
            "theory",
            "abstract; theorem on its activation gate",
            sign=-1,
            values=(-0.5,),
        ),
        baseline="a slope of 0, where nothing is learned",
        differs="The theorem is on any mixture of its kind, and up to logarithms.",
        measure=partial(slopes, figure=partial(_slope, gate="sigmoid", name="gate")),
        minutes=21,
    ),
    study(
        "gaussian-moe-linear",
        question="How fast do errors fall with a linear gate?",
        effect=Effect(
            "as slowly as 1 / log n, by no power of n",
            "theory",
            "abstract",
            sign=0,
            values=(0.0,),
        ),
        baseline="a slope of 0, where nothing is learned",
        differs="A line through finite n cannot tell 1 / log n from a small power.",
        measure=partial(slopes, figure=partial(_slope, gate="linear", name="gate")),
        minutes=12,
    ),
)
