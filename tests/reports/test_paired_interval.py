"""The interval over test items and seeds: its twin, its ends, and how often it is wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from intarsia.reports.sheet import ItemValues, paired
from intarsia.reports.statistics import FEWEST, PairedInterval, paired_interval


def crossed(ours: np.ndarray, theirs: np.ndarray) -> PairedInterval | None:
    """The interval of (seeds, items) of values, the same items at every seed."""
    return paired_interval([np.arange(ours.shape[1])] * len(ours), list(ours), list(theirs))


def right(*places: int, items: int = 36) -> np.ndarray:
    return np.isin(np.arange(items), places)


def test_one_picture_decides_nothing() -> None:
    none = np.zeros((3, 36), bool)
    crossing = crossed(np.tile(right(7), (3, 1)), none)
    assert crossing is not None and crossing.mean == pytest.approx(1 / 36)
    assert crossing.low < 0 < crossing.high and not crossing.significant
    assert (crossing.differing, crossing.items, crossing.seeds, crossing.p) == (1, 36, 3, None)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_no_picture_at_all_leaves_room_on_both_sides(seeds: int) -> None:
    rows = np.tile(right(1, 2, 3), (seeds, 1))
    crossing = crossed(rows, rows)
    assert crossing is not None and crossing.mean == 0 and crossing.differing == 0
    assert crossing.high == -crossing.low > 2 / 36


@pytest.mark.parametrize("seeds", [1, 2, 3, 10])
def test_fewer_than_six_pictures_never_exclude_0(seeds: int) -> None:
    for items in (6, 12, 36, 1000):
        for count in range(FEWEST):
            ours = np.tile(right(*range(count), items=items), (seeds, 1))
            crossing = crossed(ours, np.zeros((seeds, items), bool))
            assert crossing is not None and not crossing.significant


def test_all_pictures_one_way_is_no_zero_width() -> None:
    crossing = crossed(np.ones((3, 36), bool), np.zeros((3, 36), bool))
    assert crossing is not None and crossing.high == 1 and 0.8 < crossing.low < 0.95


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 200))
def test_one_seed_excludes_0_only_where_mcnemar_does(won: int, lost: int, ties: int) -> None:
    items = max(2, won + lost + ties)
    ours = right(*range(won), items=items)[None]
    theirs = right(*range(won, won + lost), items=items)[None]
    crossing = crossed(ours, theirs)
    assert crossing is not None and crossing.p is not None
    exact_test: Any = mcnemar([[0, won], [lost, 0]], exact=True)
    exact = exact_test.pvalue if won + lost else 1.0
    assert crossing.p == pytest.approx(exact)
    assert not crossing.significant or exact < 0.05
    if exact < 0.04 and ties > 20:  # and as a rule where it does
        assert crossing.significant


def test_with_the_same_items_it_is_the_two_way_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    seeds, items = 4, 30
    gaps = rng.normal(size=(1, items)) + 0.3 * rng.normal(size=(seeds, 1))
    gaps = gaps + rng.normal(size=(seeds, items)) + 0.4
    crossing = crossed(gaps, np.zeros_like(gaps))
    rows, columns = gaps.mean(0), gaps.mean(1)
    mean = gaps.mean()
    of_items = seeds * ((rows - mean) ** 2).sum() / (items - 1)
    of_seeds = items * ((columns - mean) ** 2).sum() / (seeds - 1)
    rest = ((gaps - rows - columns[:, None] + mean) ** 2).sum() / ((items - 1) * (seeds - 1))
    within, between = (of_items - rest) / (items * seeds), of_seeds / (items * seeds)
    share = between / (within + between)
    freedom = 1 / (share / (seeds - 1) + (1 - share) / (items - 1))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(within + between)
    assert crossing is not None and crossing.by_seed == pytest.approx(share)
    assert (crossing.low, crossing.high) == pytest.approx((mean - half, mean + half))


def test_seeds_that_share_no_item_are_the_sample() -> None:
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=(5, 40))
    items = [np.arange(40) + 40 * seed for seed in range(5)]
    interval = paired_interval(items, list(gaps), list(np.zeros_like(gaps)))
    want = stats.t.interval(0.95, 4, gaps.mean(), stats.sem(gaps.mean(1)))
    assert interval is not None and (interval.low, interval.high) == pytest.approx(want)


def test_the_order_of_items_and_seeds_changes_nothing_and_arms_change_signs() -> None:
    rng = np.random.default_rng(1)
    items = [rng.permutation(90)[:60] for _ in range(3)]
    ours, theirs = ([rng.random(60) < p for _ in range(3)] for p in (0.8, 0.6))
    first = paired_interval(items, ours, theirs)
    turn = rng.permutation(60)
    again = paired_interval(*([row[turn] for row in rows[::-1]] for rows in (items, ours, theirs)))
    swapped = paired_interval(items, theirs, ours)
    assert first is not None and again is not None and swapped is not None
    assert (first.low, first.high) == pytest.approx((again.low, again.high))
    assert (first.low, first.high) == pytest.approx((-swapped.high, -swapped.low))
    assert first.differing == swapped.differing


def test_weights_are_those_of_a_mean_over_tokens_or_classes() -> None:
    rng = np.random.default_rng(2)
    tokens = rng.integers(1, 50, 40).astype(float)
    ours, theirs = rng.normal(size=(2, 3, 40))
    items, weights = [np.arange(40)] * 3, [tokens] * 3
    interval = paired_interval(items, list(ours), list(theirs), weights)
    means = ((ours - theirs) * tokens).sum(1) / tokens.sum()
    assert interval is not None and interval.mean == pytest.approx(means.mean())
    scaled = paired_interval(items, list(ours), list(theirs), [tokens * 7] * 3)
    assert scaled is not None and scaled.low == pytest.approx(interval.low)


def test_without_a_sample_there_is_no_interval() -> None:
    single = np.array([[True], [False]])
    assert crossed(single, ~single) is None  # one item
    constant = np.full((3, 20), 0.25)
    assert crossed(constant, np.zeros_like(constant)) is None
    constant[0, 0] = math.nan
    assert crossed(constant, np.zeros_like(constant)) is None


def test_arms_are_paired_on_the_same_items_only() -> None:
    a = ItemValues(np.arange(20), right(*range(9), items=20))
    b = ItemValues(np.arange(20), right(1, items=20))
    shifted = ItemValues(np.arange(1, 21), b.values)
    assert paired({0: a, 1: a}, {1: b}) == paired({1: a}, {1: b}) is not None
    assert paired({0: a}, {1: b}) is None and paired({0: a}, {0: shifted}) is None
