"""The interval of the worst of several comparisons covers the worst mean, one alone does not."""

import numpy as np
import pytest
from scipy.stats import t

from intarsia_lab.kit import worst_of
from intarsia_lab.kit.worst import worst_interval

DRAWS, SEEDS = 20_000, 5


def twin(draws, levels):
    """Both ends for "<=" of many draws (draws, comparisons, seeds), straight from the formula."""
    mean, count = draws.mean(-1), draws.shape[1]
    half = draws.std(-1, ddof=1) / np.sqrt(SEEDS)
    near, far = (t.ppf(1 - (1 - levels) / 2 / m, SEEDS - 1) for m in (count, 1))
    return (mean - near * half).max(-1), (mean + far * half).max(-1)


@pytest.mark.parametrize("means", [(0, 0), (0, 0, 0), (0, -0.5, -1), (0, -9, -9)])
def test_it_covers_the_worst_mean_however_the_others_lie(means):
    draws = np.random.default_rng(5).normal(size=(DRAWS, len(means), SEEDS))
    draws += np.array(means)[:, None]
    low, high = twin(draws, 0.95)
    sides = (low > 0).mean(), (high < 0).mean()
    assert max(sides) <= 0.025 + 5 * np.sqrt(0.025 / DRAWS)
    for draw, ends in zip(draws[:3], zip(low, high, strict=True), strict=False):
        assert worst_interval(draw.tolist(), "<=") == pytest.approx(ends)
        mirrored = worst_interval((-draw).tolist(), ">=")
        assert mirrored == pytest.approx((-ends[1], -ends[0]))


def test_the_interval_of_the_one_that_looked_worst_does_not():
    draws = np.random.default_rng(6).normal(size=(DRAWS, 3, SEEDS))
    worst = draws[np.arange(DRAWS), draws.mean(-1).argmax(-1)]
    low, _ = twin(worst[:, None], 0.95)
    assert (low > 0).mean() > 0.04  # 2.5 % are nominal


def test_the_value_is_that_of_the_worst_of_several():
    values = {"one": [0.9, 0.91, 0.89], "two": [1.04, 1.05, 1.06]}
    result = worst_of(values, "<=", [{"arm": "ours"}], "So.")
    assert result.value == pytest.approx(1.05) and result.values == (1.04, 1.05, 1.06)
    assert result.interval == worst_interval(values.values(), "<=")
    assert result.note == "So. Means: one 0.900, two 1.050; the value is the worst, two."
    assert worst_of(values, ">=", [], "").value == pytest.approx(0.9)
