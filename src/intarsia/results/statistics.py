"""What a reviewer asks of a benchmark; SciPy and statsmodels do the statistics.

Everything here works on arrays of accuracies, NaN where there is none; tasks are the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import MissingExtra

ALPHA = 0.05
RESAMPLES = 9_999
DECIMALS = 12  # sums in another order must not break a tie


@dataclass(frozen=True)
class Ranking:
    """Average ranks (1 = best), Friedman's p, Nemenyi's critical difference and its cliques.

    cliques: methods whose ranks lie within the critical difference, as first and last place in
    the order of ranks; none within another.
    """

    ranks: np.ndarray
    tasks: int
    p: float
    critical: float
    cliques: tuple[tuple[int, int], ...]


def task_means(accuracy: np.ndarray) -> np.ndarray:
    """Means over seeds.  (..., tasks, seeds) -> (..., tasks), NaN for a task without any."""
    known = ~np.isnan(accuracy)
    count = known.sum(-1)
    total = np.where(known, accuracy, 0.0).sum(-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def weights(groups: Sequence[str]) -> np.ndarray:
    """Of each task in the mean over groups of the means over a group's tasks.  (tasks,)"""
    names, place, size = np.unique(np.array(groups), return_inverse=True, return_counts=True)
    return 1.0 / (len(names) * size[place])


def t_interval(values: Sequence[float], level: float = 1 - ALPHA) -> tuple[float, float]:
    """Student's interval of the mean of one sample; without ends for one value."""
    from scipy.stats import t

    mean, count = math.fsum(values) / len(values), len(values)
    if count < 2:
        return -math.inf, math.inf
    half = float(t.ppf((1 + level) / 2, count - 1) * np.std(values, ddof=1)) / math.sqrt(count)
    return mean - half, mean + half


def bootstrap_interval(pairs: np.ndarray, seed: int) -> tuple[float, float] | None:
    """95 % of a two-stage percentile bootstrap of the mean over tasks of the means over seeds.

    pairs: (tasks, seeds), at least one of each task, NaN where there is none.  None for one pair.
    """
    from scipy.stats import bootstrap

    table, count = np.sort(pairs, axis=1), (~np.isnan(pairs)).sum(1)  # known seeds first
    outer, inner = np.random.default_rng(seed).spawn(2)

    def draw(index: np.ndarray, axis: int = -1) -> np.ndarray:
        """index: (..., tasks), drawn by SciPy."""
        n = count[index][..., None]
        pick = (inner.random((*index.shape, table.shape[1])) * n).astype(int)
        drawn = np.take_along_axis(table[index], pick, -1)
        inside = np.arange(table.shape[1]) < n
        return (np.where(inside, drawn, 0.0).sum(-1) / n[..., 0]).mean(axis)

    options: dict[str, Any] = {
        "n_resamples": RESAMPLES,
        "confidence_level": 1 - ALPHA,
        "method": "percentile",
        "vectorized": True,
        "rng": outer,
    }
    if len(table) > 1:
        found = bootstrap((np.arange(len(table)),), draw, batch=1_000, **options)
    elif count[0] > 1:
        found = bootstrap((table[0, : count[0]],), np.mean, **options)
    else:
        return None
    low, high = np.round(found.confidence_interval, DECIMALS) + 0.0
    return float(low), float(high)


def wilcoxon(differences: np.ndarray) -> float | None:
    """Two-sided p of the signed-rank test (zeros by Pratt); None for fewer than two tasks.

    Five tasks or fewer cannot get below 0.05, whatever they say.
    """
    from scipy import stats

    if len(differences) < 2:
        return None
    if not np.any(differences):
        return 1.0
    found: Any = stats.wilcoxon(np.sort(differences), zero_method="pratt")
    return float(found.pvalue)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's correction for as many tests as have a p.  Raises: MissingExtra."""
    known = [value for value in p if value is not None]
    if not known:
        return list(p)
    try:
        from statsmodels.stats.multitest import multipletests
    except ImportError as error:
        raise MissingExtra("statsmodels", "bench") from error
    corrected = iter(np.asarray(multipletests(known, method="holm")[1]))
    return [None if value is None else float(next(corrected)) for value in p]


def ranks(means: np.ndarray) -> np.ndarray:
    """Rank of each method on each task, 1 = best, ties share theirs.  (methods, tasks) in, out."""
    from scipy.stats import rankdata

    return rankdata(-np.round(means, DECIMALS), axis=0)


def ranking(means: np.ndarray) -> Ranking | None:
    """Average ranks with Friedman's test and Nemenyi's critical difference.

    means: (methods, tasks) without NaN.  None for fewer than three methods or two tasks: two
    methods are what Wilcoxon's test is for.
    """
    from scipy import stats

    methods, tasks = means.shape
    if methods < 3 or tasks < 2:
        return None
    each = ranks(means)
    average = each.mean(1)
    # equal everywhere: the test would divide by the variance of the ranks, which is 0
    same = bool((each == each[0]).all())
    p = 1.0 if same else float(stats.friedmanchisquare(*each).pvalue)
    critical = critical_difference(methods, tasks)
    return Ranking(average, tasks, p, critical, _cliques(np.sort(average), critical))


def critical_difference(methods: int, tasks: int) -> float:
    """Nemenyi's: average ranks further apart than this differ at the 0.05 level (Demsar 2006)."""
    from scipy.stats import studentized_range

    q = studentized_range.ppf(1 - ALPHA, methods, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * tasks)))


def _cliques(ordered: np.ndarray, critical: float) -> tuple[tuple[int, int], ...]:
    spans = [
        (first, int(np.searchsorted(ordered, rank + critical, side="right")) - 1)
        for first, rank in enumerate(ordered)
    ]
    longest = [span for i, span in enumerate(spans) if i == 0 or span[1] > spans[i - 1][1]]
    return tuple(span for span in longest if span[1] > span[0])


def ppt(accuracy: float, parameters: float) -> float:
    """Accuracy after a discount for trained parameters: acc * exp(-log10(P / 1e7 + 1)).

    Not for comparing backbones: 1e7 does not grow with them.
    """
    return accuracy * math.exp(-math.log10(parameters / 1e7 + 1))
