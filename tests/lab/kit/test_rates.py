"""Every arm has its own learning rate, from one grid whose edges are no choice."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import ConfigError
from intarsia_lab.kit import ArmRate, Rates

from ...refusals import refused

GRID = (1e-3, 3e-3, 1e-2)


def peak_at(best: float) -> Any:
    """Return a score that is highest at one rate, and falls on both sides of it."""
    return lambda arm, rate: -abs(math.log10(rate) - math.log10(best))


@pytest.mark.parametrize("grid", [(), (1e-3,), (1e-3, 1e-2)])
def test_a_grid_without_an_inner_rate_is_refused(grid: tuple[float, ...]) -> None:
    with refused(ConfigError, what="grid of a study"):
        Rates(grid, {"ours": 100})


def test_arms_without_steps_are_refused() -> None:
    for steps in ({}, {"ours": 0}):
        with refused(ConfigError, what="steps of a study's arms", got=steps):
            Rates(GRID, steps)


def test_a_grid_grows_for_all_arms_while_an_edge_wins() -> None:
    tried: list[tuple[str, float]] = []

    def score(arm: str, rate: float) -> float:
        tried.append((arm, rate))
        return peak_at(1e-1 if arm == "ours" else 3e-3)(arm, rate)

    ours, theirs = Rates(GRID, {"ours": 10, "theirs": 20}).choose(score)
    assert (ours.rate, theirs.rate, ours.steps, theirs.steps) == (0.1, 3e-3, 10, 20)
    assert ours.grid == theirs.grid == (*GRID, 3e-2, 1e-1, 3e-1)
    assert len(tried) == len(set(tried)) == 2 * len(ours.grid)  # equal trials, none of them twice


@given(st.integers(-9, -3))
def test_what_is_chosen_is_the_best_and_no_edge(half_decades: int) -> None:
    best = float(f"{10 ** (half_decades / 2):.1g}")
    (rate,) = Rates(GRID, {"ours": 1}).choose(peak_at(best))
    assert rate.rate == best and rate.rate not in (rate.grid[0], rate.grid[-1])


def test_among_equals_an_inner_rate_is_chosen() -> None:
    (rate,) = Rates(GRID, {"ours": 1}).choose(lambda arm, rate: 1.0)
    assert rate == ArmRate("ours", 3e-3, 1, GRID)


def test_an_arm_s_rates_may_lie_elsewhere() -> None:
    rates = Rates(GRID, {"adam": 1, "adagrad": 1}, scale={"adagrad": 50.0})
    adam, adagrad = rates.choose(
        lambda arm, rate: peak_at(0.15 if arm == "adagrad" else 3e-3)(arm, rate)
    )
    assert (adam.rate, adagrad.rate) == (3e-3, pytest.approx(0.15))
    assert len(adam.grid) == len(adagrad.grid) == 3
