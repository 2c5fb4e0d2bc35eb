"""Every arm has its own learning rate, from one grid whose edges are no choice."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import ConfigError
from intarsia_lab.kit import ArmRate, FixedRate, NoControl, Rates, Result, Study
from intarsia_lab.kit.arms import result_of

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
        with refused(ConfigError, what="steps of a study's arms", got=steps):
            FixedRate(1e-3, steps, "It is published.")


def test_stages_have_rates_of_their_own_under_the_names_of_their_steps() -> None:
    stages = FixedRate({"first": 1e-3, "second": 1e-4}, {"first": 10, "second": 20})
    assert stages.arms == (ArmRate("first", 1e-3, 10), ArmRate("second", 1e-4, 20))
    with refused(ConfigError, what="rates by name", got=["first"]):
        FixedRate({"first": 1e-3}, {"first": 10, "second": 20})


def test_a_grid_grows_for_all_arms_while_an_edge_wins() -> None:
    tried: list[tuple[str, float]] = []

    def score(arm: str, rate: float) -> float:
        tried.append((arm, rate))
        return peak_at(1e-1 if arm == "ours" else 3e-3)(arm, rate)

    ours, theirs = Rates(GRID, {"ours": 10, "theirs": 20}).choose(score)
    assert (ours.rate, theirs.rate, ours.steps, theirs.steps) == (0.1, 3e-3, 10, 20)
    assert ours.grid == theirs.grid == (*GRID, 3e-2, 1e-1, 3e-1) and not ours.edge
    assert len(tried) == len(set(tried)) == 2 * len(ours.grid)  # equal trials, none of them twice


@given(st.integers(-9, -3))
def test_what_is_chosen_is_the_best_and_no_edge(half_decades: int) -> None:
    best = float(f"{10 ** (half_decades / 2):.1g}")
    (rate,) = Rates(GRID, {"ours": 1}).choose(peak_at(best))
    assert rate.rate == best and not rate.edge


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


def verdict(*rates: ArmRate) -> tuple[str, str]:
    study = Study(
        "c", "s", "b", 0.0, ">=", lambda seeds, report: Result(0, 0, ()), NoControl("A test."),
        rates=Rates(GRID, {"ours": 1, "theirs": 1}),
    )  # fmt: skip
    return tuple(study.judge(result_of((0.9, 1.0, 1.1), (), rates=rates)))  # pyright: ignore


def test_rates_that_are_no_fair_choice_make_a_figure_void() -> None:
    inner = [ArmRate(arm, 3e-3, 1, GRID) for arm in ("ours", "theirs")]
    assert verdict(*inner) == ("holds", "")
    word, reason = verdict()
    assert word == "void" and "ours" in reason
    word, reason = verdict(inner[0])
    assert word == "void" and "theirs" in reason
    word, reason = verdict(inner[0], ArmRate("theirs", 1e-2, 1, GRID))
    assert word == "void" and "theirs, 0.01, is an edge" in reason
    word, reason = verdict(inner[0], ArmRate("theirs", 3e-3, 1, (*GRID, 3e-2)))
    assert word == "void" and "unequal" in reason


def test_one_rate_for_all_arms_is_in_the_record_of_each() -> None:
    fixed = FixedRate(5e-3, {"ours": 10, "theirs": 20}, "It is published.")
    assert fixed.arms == (ArmRate("ours", 5e-3, 10), ArmRate("theirs", 5e-3, 20))
    assert not fixed.failure(()) and not fixed.arms[0].edge
