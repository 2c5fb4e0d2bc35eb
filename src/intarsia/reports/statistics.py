"""Statistics of a benchmark that a reviewer asks for; SciPy and statsmodels compute them.

Over several tasks, tasks are the sample: arrays of accuracies, NaN where there is none.  On one
task, its test items and the seeds are: `paired_interval`.
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
FEWEST = 6  # items that differ: an exact sign test of five has p = 2 / 2^5 at least


@dataclass(frozen=True)
class Ranking:
    """Average ranks (1 = best), Friedman's p, Nemenyi's critical difference and its cliques.

    cliques: methods with ranks that lie within the critical difference, as first and last place in
    the order of ranks; none within another.
    """

    ranks: np.ndarray
    tasks: int
    p: float
    critical: float
    cliques: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PairedInterval:
    """Mean of one arm minus another on the same test items, with its 95 % interval.

    seeds, items: how many there are of each; differing: items on which the arms differ in any seed.
    p: of the exact McNemar test, for right or wrong answers of one seed that count alike.
    by_seed: the share of the variance that a difference between seeds shows, 1 for one that does
    not come from the items at all.
    """

    mean: float
    low: float
    high: float
    seeds: int
    items: int
    differing: int
    p: float | None
    by_seed: float

    @property
    def significant(self) -> bool:
        """True where the whole interval is on one side of 0."""
        return self.low > 0 or self.high < 0


def task_means(accuracy: np.ndarray) -> np.ndarray:
    """Average results over seeds.

    accuracy: (..., tasks, seeds), NaN = no result. Returns (..., tasks), NaN for a task without
      any.
    """
    # a mean of what there is, with no warning for a task without any
    present = ~np.isnan(accuracy)
    count = present.sum(-1)
    total = np.where(present, accuracy, 0.0).sum(-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def weights(groups: Sequence[str]) -> np.ndarray:
    """Return a weight for each task, (tasks,), with which every group of tasks counts alike.

    groups: the name of each task's group. The weighted sum of results is the mean over groups of
    the means over a group's tasks; the weights sum to 1.
    """
    names, place, size = np.unique(np.array(groups), return_inverse=True, return_counts=True)
    return 1.0 / (len(names) * size[place])


def t_interval(values: Sequence[float], level: float = 1 - ALPHA) -> tuple[float, float]:
    """Return Student's confidence interval of the mean of one sample; infinite for a single value.

    level: probability of the interval, 0.95 by default.
    """
    from scipy.stats import t

    mean, count = math.fsum(values) / len(values), len(values)
    if count < 2:
        return -math.inf, math.inf
    half = float(t.ppf((1 + level) / 2, count - 1) * np.std(values, ddof=1)) / math.sqrt(count)
    return mean - half, mean + half


def share_interval(share: float, items: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of items; for scores in [0, 1] it is wide enough.

    share: of right answers, or the mean score; items: how many were answered, 1 or more.
    Not for items that resemble each other, as crops of one photograph: it is too narrow there.
    """
    from scipy.stats import binomtest

    ends = binomtest(round(share * items), items).proportion_ci(1 - ALPHA, method="wilson")
    return float(ends.low), float(ends.high)


def paired_interval(
    items: Sequence[np.ndarray],
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    weights: Sequence[np.ndarray] | None = None,
) -> PairedInterval | None:
    """Return the difference of two methods on one test set, with a 95 % interval.

    The interval is over the test items and the seeds together. Each argument has one array (n,) for
    each seed. items: whole numbers, the same for the same item in whatever seed; an item may be
    missing in some of them. ours, theirs: the methods' values of each item: bool for right or
    wrong, else numbers, as losses. weights: of each item in a seed's mean, None = all alike; tokens
    of a text, or 1 / the size of an item's class.

    Seeds are exchangeable, so the variance of their mean is one seed's variance / S plus the
    covariance of two, which comes from the items that both have:
        V = s^2 / S + c,   c = mean over s != t of sum_i x_is x_it, at least 0,
    x_is is the share of item i in the deviation of seed s, s^2 the variance between the S seeds.
    With the same n items everywhere this is the estimate of a two-way analysis of variance. The
    ends are t quantiles; for the degrees of freedom see `_quantile`. Fewer than six differing items
    exclude nothing, and neither does one seed with an exact McNemar test that does not. One seed
    speaks of other items, not of other trainings.
    None for fewer than two items, where all differences of numbers are the same, and for NaN.
    """
    # step 1: give each item a number that is the same in every seed
    ids, place = np.unique(np.concatenate(items), return_inverse=True)
    seeds, n = len(items), len(ids)
    if n < 2:
        return None
    binary = all(values.dtype == bool for values in (*ours, *theirs))
    # step 2: the difference of each item, and each seed's weighted mean of them
    gaps = [a.astype(float) - b.astype(float) for a, b in zip(ours, theirs, strict=True)]
    scale = [np.ones(len(gap)) for gap in gaps] if weights is None else weights
    means = np.array([float(w @ gap / w.sum()) for w, gap in zip(scale, gaps, strict=True)])
    # step 3: x_is, an item's share in the deviation of a seed's mean; 0 where it is missing
    shares = [w * (d - m) / w.sum() for w, d, m in zip(scale, gaps, means, strict=True)]
    x = np.zeros((seeds, n))
    row = np.repeat(np.arange(seeds), [len(gap) for gap in gaps])
    np.add.at(x, (row, place.ravel()), np.concatenate(shares))
    all_gaps = np.concatenate(gaps)
    differing = len(np.unique(place[all_gaps != 0]))
    # step 4: V = s^2 / S + c
    between, within = _variances(x, means)
    if binary and (seeds == 1 or _shows_no_spread(all_gaps, place)):
        within += 2 / n**2  # Bonett and Price (2012): two items more, one for each arm
    total = between + within
    if not total > 0:  # NaN neither
        return None
    # step 5: mean plus or minus a t quantile of the combined degrees of freedom
    mean = round(math.fsum(means) / seeds, DECIMALS) + 0.0  # never -0.0
    half = _quantile(between / total, seeds, n) * math.sqrt(total)
    # step 6: with one seed, or few items that differ, the exact test decides about 0
    exact = binary and seeds == 1 and weights is None
    p = mcnemar(int((all_gaps > 0).sum()), int((all_gaps < 0).sum())) if exact else None
    if differing < FEWEST or (p is not None and p >= ALPHA):
        half = max(half, abs(mean))
    low, high = mean - half, mean + half
    if binary:
        low, high = max(-1.0, low), min(1.0, high)
    return PairedInterval(mean, low, high, seeds, n, differing, p, between / total)


def _variances(x: np.ndarray, means: np.ndarray) -> tuple[float, float]:
    """Return the variance of the mean over seeds in two parts: between seeds, from the items."""
    # x: (seeds, items), each item's share in the deviation of a seed's mean
    seeds, items = x.shape
    squares = float((x**2).sum())
    # Bessel's correction for the items' own mean
    corrected = items / (items - 1)
    if seeds == 1:
        return 0.0, squares * corrected
    # sum over pairs s != t = (sum over seeds)^2 - the squares themselves
    cross = float((x.sum(0) ** 2).sum()) - squares
    within = max(0.0, cross) / (seeds * (seeds - 1)) * corrected
    return float(means.var(ddof=1)) / seeds, within


def _shows_no_spread(gaps: np.ndarray, place: np.ndarray) -> bool:
    """Return True if fewer than six items deviate from the most common difference: no spread."""
    # gaps: (n,), differences of all items and seeds; place: (n,), the number of each one's item
    values, counts = np.unique(gaps, return_counts=True)
    return len(np.unique(place[gaps != values[counts.argmax()]])) < FEWEST


def _quantile(share: float, seeds: int, items: int) -> float:
    """Return Student's 97.5 % quantile for a mean over seeds and items."""
    from scipy.stats import t

    if seeds == 2:
        ends = t.ppf(1 - ALPHA / 2, [1, items - 1])
        return float(share * ends[0] + (1 - share) * ends[1])
    freedom = 1 / (share / max(1, seeds - 1) + (1 - share) / (items - 1))
    return float(t.ppf(1 - ALPHA / 2, freedom))


def mcnemar(won: int, lost: int) -> float:
    """Return the two-sided p-value of the exact McNemar test.

    won, lost: items that only the one method has right, and that only the other has right.
    """
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def bootstrap_interval(pairs: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over tasks of means over seeds.

    pairs: (tasks, seeds), such as the difference of two methods' scores on each task at each seed;
    NaN = the task was not run at that seed. There are two tasks or more, each with a number. Tasks
    are drawn first, then the seeds of each drawn task (percentile method).
    Returns the ends of the interval, low and high, in the unit of `pairs`.
    """
    from scipy.stats import bootstrap

    table, count = np.sort(pairs, axis=1), (~np.isnan(pairs)).sum(1)  # known seeds first
    # two streams: one draws tasks (SciPy), the other draws the seeds of each
    outer, inner = np.random.default_rng(seed).spawn(2)

    def draw(index: np.ndarray, axis: int = -1) -> np.ndarray:
        """Return the mean of each draw.  index: (..., tasks), drawn by SciPy."""
        # (..., tasks, 1): the seeds that each drawn task has
        n = count[index][..., None]
        # seeds of a drawn task, with replacement, among those that it has
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
    result = bootstrap((np.arange(len(table)),), draw, batch=1_000, **options)
    low, high = np.round(result.confidence_interval, DECIMALS) + 0.0
    return float(low), float(high)


def wilcoxon(differences: np.ndarray) -> float | None:
    """Return the two-sided p-value of the signed-rank test (zeros by Pratt); None for one task.

    differences: (tasks,). Five tasks or fewer cannot get below 0.05.
    """
    from scipy import stats

    if len(differences) < 2:
        return None
    # no difference at all: there is nothing to rank
    if not np.any(differences):
        return 1.0
    result: Any = stats.wilcoxon(np.sort(differences), zero_method="pratt")
    return float(result.pvalue)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for multiple tests by Holm's method; None stays None and does not count.

    p: one for each test, None for a test without one. Raises: MissingExtra without statsmodels.
    """
    values = [value for value in p if value is not None]
    if not values:
        return list(p)
    try:
        from statsmodels.stats.multitest import multipletests
    except ImportError as error:
        raise MissingExtra("statsmodels", "bench") from error
    # tests without a p keep their place and do not count
    corrected = iter(np.asarray(multipletests(values, method="holm")[1]))
    return [None if value is None else float(next(corrected)) for value in p]


def ranks(means: np.ndarray) -> np.ndarray:
    """Rank the methods on each task, 1 = best; equal ones share the mean of their ranks.

    means: (methods, tasks), higher is better. Returns the same shape.
    """
    from scipy.stats import rankdata

    return rankdata(-np.round(means, DECIMALS), axis=0)


def ranking(means: np.ndarray) -> Ranking | None:
    """Return the methods' average ranks, with Friedman's test and Nemenyi's critical difference.

    means: (methods, tasks) without NaN, higher is better. None for fewer than three methods or two
      tasks: two methods are compared by Wilcoxon's test.
    """
    from scipy import stats

    methods, tasks = means.shape
    if methods < 3 or tasks < 2:
        return None
    task_ranks = ranks(means)
    # (methods, tasks) -> (methods,)
    average = task_ranks.mean(1)
    # equal everywhere: the test would divide by the variance of the ranks, which is 0
    all_equal = bool((task_ranks == task_ranks[0]).all())
    p = 1.0 if all_equal else float(stats.friedmanchisquare(*task_ranks).pvalue)
    critical = critical_difference(methods, tasks)
    return Ranking(average, tasks, p, critical, _cliques(np.sort(average), critical))


def critical_difference(methods: int, tasks: int) -> float:
    """Return Nemenyi's critical difference: average ranks further apart differ at the 0.05 level.

    Source: Demsar 2006.
    """
    from scipy.stats import studentized_range

    # CD = q_alpha sqrt(k (k + 1) / (6 N)), k methods on N tasks
    q = studentized_range.ppf(1 - ALPHA, methods, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * tasks)))


def _cliques(ordered: np.ndarray, critical: float) -> tuple[tuple[int, int], ...]:
    """Return the first and last of the largest groups with mean ranks within `critical`."""
    # ordered: (methods,) mean ranks, ascending
    spans = [
        (first, int(np.searchsorted(ordered, rank + critical, side="right")) - 1)
        for first, rank in enumerate(ordered)
    ]
    # a clique inside a longer one says nothing new
    longest = [span for i, span in enumerate(spans) if i == 0 or span[1] > spans[i - 1][1]]
    return tuple(span for span in longest if span[1] > span[0])


def ppt(accuracy: float, parameters: float) -> float:
    """Discount accuracy for trained parameters P: accuracy * exp(-log10(P / 1e7 + 1)).

    accuracy: 0 ... 1; parameters: P, a count. The result is in the unit of accuracy.
    Not for comparing backbones: 1e7 does not grow with them.
    """
    return accuracy * math.exp(-math.log10(parameters / 1e7 + 1))
