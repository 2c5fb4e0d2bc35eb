"""Laws of the statistics, and their naive twins."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from intarsia.core.errors import ShapeError
from intarsia.reports import statistics
from intarsia.reports.sheet import Differences, suite_mean

tables = st.tuples(st.integers(1, 7), st.integers(1, 4)).flatmap(
    lambda shape: arrays(float, shape, elements=st.integers(0, 100).map(lambda n: n / 100))
)
ragged = st.tuples(st.integers(1, 7), st.integers(1, 4)).flatmap(
    lambda shape: arrays(
        float, shape, elements=st.integers(0, 100).map(lambda n: n / 100) | st.just(math.nan)
    )
)


@given(tables, st.data())
def test_group_mean_is_task_mean_when_groups_are_equal(
    table: np.ndarray, data: st.DataObject
) -> None:
    groups = data.draw(st.integers(1, 3))
    names = [f"g{i % groups}" for i in range(groups * len(table))]
    accuracy = np.tile(table, (groups, 1)) * data.draw(st.sampled_from([1.0, 0.5]))
    group = suite_mean(accuracy, statistics.weights(names))
    task = suite_mean(accuracy)
    assert math.isclose(group.mean, task.mean, abs_tol=1e-12)


@given(tables, st.randoms())
def test_suite_means_against_their_definition(table: np.ndarray, rng: random.Random) -> None:
    names = [rng.choice("abc") for _ in table]
    by_seed = [
        fmean(
            fmean(v for v, n in zip(column, names, strict=True) if n == name) for name in set(names)
        )
        for column in table.T.tolist()
    ]
    average = suite_mean(table, statistics.weights(names))
    assert math.isclose(average.mean, fmean(by_seed), abs_tol=1e-12)
    assert average.n == table.shape[1]
    if average.n > 1:
        assert math.isclose(average.deviation or 0, stdev(by_seed), abs_tol=1e-12)


def test_a_suite_mean_needs_every_task() -> None:
    with pytest.raises(ShapeError):
        suite_mean(np.array([[0.1, 0.2], [0.3, np.nan]]))
    # a seed that no task has is no gap
    assert suite_mean(np.array([[0.1, np.nan], [0.3, np.nan]])).mean == 0.2


@given(ragged)
def test_a_method_against_itself_differs_by_nothing(table: np.ndarray) -> None:
    differences = Differences.of(table, table)
    if np.isnan(table).all():
        assert differences is None
        return
    assert (
        differences is not None and differences.mean == 0 and differences.interval in ((0, 0), None)
    )
    assert differences.p in (1, None)
    assert differences.n == (~np.isnan(table)).sum()


@given(ragged, st.randoms())
def test_a_difference_is_over_pairs_only(ours: np.ndarray, rng: random.Random) -> None:
    theirs = np.array([[rng.choice([math.nan, rng.random()]) for _ in row] for row in ours])
    rows = [
        [a - b for a, b in zip(x, y, strict=True) if not math.isnan(a - b)]
        for x, y in zip(ours.tolist(), theirs.tolist(), strict=True)
    ]
    differences = Differences.of(ours, theirs)
    if not any(rows):
        assert differences is None
        return
    assert differences is not None
    assert math.isclose(differences.mean, fmean(fmean(row) for row in rows if row), abs_tol=1e-9)
    assert differences.n == sum(map(len, rows))
    back = Differences.of(theirs, ours)
    assert back is not None and back.p == differences.p and back.record == differences.record[::-1]
    if differences.interval is not None:
        low, high = differences.interval
        values = [v for row in rows for v in row]
        assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_the_interval_is_a_bootstrap_in_two_stages() -> None:
    generator = np.random.default_rng(3)
    ours, theirs = generator.normal(0.7, 0.05, (8, 3)), generator.normal(0.68, 0.05, (8, 3))
    ours[2, 1] = np.nan  # one pair less
    differences = Differences.of(ours, theirs)
    rows = [[float(v) for v in row if not np.isnan(v)] for row in ours - theirs]
    rng = random.Random(0)
    means = sorted(
        fmean(fmean(rng.choices(row, k=len(row))) for row in rng.choices(rows, k=len(rows)))
        for _ in range(20_000)
    )
    assert differences is not None and differences.interval is not None
    low, high = differences.interval
    width = means[-500] - means[500]
    assert math.isclose(low, means[500], abs_tol=0.05 * width)
    assert math.isclose(high, means[-500], abs_tol=0.05 * width)
    assert low < differences.mean < high


def test_the_interval_is_the_same_every_time_and_the_order_of_seeds_does_not_matter() -> None:
    generator = np.random.default_rng(3)
    ours, theirs = generator.random((5, 4)), generator.random((5, 4))
    first, again = Differences.of(ours, theirs), Differences.of(ours, theirs)
    turned = Differences.of(ours[:, ::-1], theirs[:, ::-1])
    reseeded = statistics.bootstrap_interval(ours - theirs, seed=1)
    assert first and again and turned
    assert first.interval == again.interval == turned.interval
    assert first.interval != reseeded


def test_one_task_has_an_interval_over_its_items_or_none() -> None:
    differences = Differences.of(np.array([[0.5, 0.6, 0.7]]), np.array([[0.4, 0.4, 0.4]]))
    assert differences is not None and differences.p is None and differences.interval is None
    over = statistics.PairedInterval(0.2, -0.1, 0.5, 3, 10, 7, None, 0.5)
    assert replace(differences, over_items=over).interval == (-0.1, 0.5)


@given(tables)
def test_ranks_add_up(table: np.ndarray) -> None:
    k = len(table)
    rows = statistics.ranks(table)
    assert np.allclose(rows.sum(0), k * (k + 1) / 2)
    # twin: one more than how many are better, and half of the ties
    for column, ranks in zip(table.T, rows.T, strict=True):
        for value, rank in zip(column, ranks, strict=True):
            better, equal = (column > value).sum(), (column == value).sum()
            assert rank == better + (equal + 1) / 2


@given(tables)
def test_ranking_is_friedman_s(table: np.ndarray) -> None:
    ranking = statistics.ranking(table)
    if table.shape[0] < 3 or table.shape[1] < 2:
        assert ranking is None
        return
    assert ranking is not None and 0 <= ranking.p <= 1
    k, n = table.shape
    # without ties: the textbook's statistic
    if all(len(set(column)) == k for column in table.T):
        chi = 12 * n / (k * (k + 1)) * (sum(ranking.ranks**2) - k * (k + 1) ** 2 / 4)
        assert math.isclose(ranking.p, stats.chi2.sf(chi, k - 1), abs_tol=1e-9)
    ordered = np.sort(ranking.ranks)
    inside = {
        (i, j) for first, last in ranking.cliques for i in range(first, last + 1)
        for j in range(i + 1, last + 1)
    }  # fmt: skip
    assert inside == {
        (i, j) for i in range(k) for j in range(i + 1, k)
        if ordered[j] <= ordered[i] + ranking.critical
    }  # fmt: skip


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_demsar_s(methods: int, q: float) -> None:
    """q of table 5 in Demsar 2006."""
    want = q * math.sqrt(methods * (methods + 1) / (6 * 14))
    assert math.isclose(statistics.critical_difference(methods, 14), want, rel_tol=1e-3)


@settings(max_examples=15)  # statsmodels collects garbage at each call
@given(st.lists(st.none() | st.floats(0, 1), max_size=8))
def test_holm_against_its_definition(p: list[float | None]) -> None:
    order = sorted((i for i, value in enumerate(p) if value is not None), key=lambda i: p[i] or 0.0)
    want: list[float | None] = [None] * len(p)
    running = 0.0
    for step, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - step) * (p[i] or 0.0)))
        want[i] = running
    adjusted = statistics.holm(p)
    assert [v is None for v in adjusted] == [v is None for v in want]
    assert np.allclose([v or 0 for v in adjusted], [v or 0 for v in want])


def test_wilcoxon_sees_a_clear_difference_and_needs_six_tasks() -> None:
    assert statistics.wilcoxon(np.array([0.01])) is None
    assert statistics.wilcoxon(np.zeros(9)) == 1
    five = statistics.wilcoxon(np.linspace(0.01, 0.02, 5))
    six = statistics.wilcoxon(np.linspace(0.01, 0.02, 6))
    assert five is not None and six is not None and six < 0.05 < five


def test_ppt() -> None:
    assert statistics.ppt(0.7, 0) == 0.7
    # 75.8 M trained: a factor of exp(-log10(8.58))
    assert math.isclose(statistics.ppt(0.69, 75.8e6), 0.69 * math.exp(-0.93349), rel_tol=1e-4)


def test_the_t_interval_is_that_of_all_pairs_as_one_sample() -> None:
    three = Differences.by_seed({0: 2.0, 1: 4.0, 5: 6.0}, {0: 1.0, 1: 2.0, 5: 3.0, 7: 9.0})
    assert three is not None and (three.mean, three.n, three.ahead) == (2.0, 3, 3)
    assert math.isclose(three.half_width, 4.302653 / math.sqrt(3), rel_tol=1e-5)
    differences = Differences.by_seed({0: 1.0}, {0: 0.0})
    assert (
        differences is not None
        and differences.half_width == math.inf
        and differences.interval is None
    )
    assert Differences.by_seed({0: 1.0}, {1: 0.0}) is None
