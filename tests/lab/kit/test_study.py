"""One rule gives every verdict: a failed control, an interval on one side, or not decided."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import ConfigError
from intarsia_lab.kit import (
    Control,
    Effect,
    NoControl,
    Result,
    Study,
    UnknownEffect,
    above,
    below,
    numbers,
    over_items,
    seeds_needed,
)
from intarsia_lab.kit.arms import result_of

from ...refusals import refused

FREE = NoControl("A test.")


def study(target: float = 0.0, sense: str = ">=", control: Any = FREE) -> Study:
    return Study("c", "s", "b", target, sense, lambda seeds, report: Result(0, 0, ()), control)


def word(values: tuple[float, ...], *arguments: Any, **settings: Any) -> str:
    return study(*arguments, **settings).judge(result_of(values, ())).word


@pytest.mark.parametrize(
    ("target", "sense", "values", "says"),
    [
        (1, ">=", (1.9, 2.0, 2.1), "holds"),
        (1, "<=", (1.9, 2.0, 2.1), "fails"),
        (1, ">=", (0.9, 2.0, 3.1), "not decided"),  # the target lies inside
        (1, ">=", (2.0,), "not decided"),  # one value has no interval
        (0, "<=", (0.0, 0.0, 0.0), "holds"),
        (1, "within", (-0.2, 0.1, 0.0), "holds"),
        (1, "within", (-2.1, -2.0, -1.9), "fails"),
        (1, "within", (-3.0, 0.0, 3.0), "not decided"),  # both ends are outside, 0 is not
        (1, "within", (0.9, 1.0, 1.1), "not decided"),
        (1, ">=", (math.nan, 2.0), "void"),
        (1, "<=", (math.inf, 0.0), "void"),
    ],
)
def test_the_whole_interval_must_lie_on_one_side(
    target: float, sense: str, values: tuple[float, ...], says: str
) -> None:
    result = Result(sum(values) / len(values), 0.1, values)
    assert study(target, sense).judge(result).word == says


def test_the_worst_of_several_figures_must_agree_with_the_interval() -> None:
    result = Result(0.9, 0.1, (1.9, 2.0, 2.1))
    verdict = study(1.0).judge(result)
    assert verdict.word == "not decided" and "worst of several" in verdict.reason


def test_a_failed_control_makes_any_figure_void() -> None:
    rows = ({"arm": "teacher", "loss": "1.90 ± 0.1"}, {"arm": "student", "loss": "1.80"})
    result = Result(2.0, 0.1, (1.9, 2.0, 2.1), rows)
    learned = below("The teacher learned.", "loss", 1.85, {"arm": "teacher"})
    verdict = study(1.0, control=learned).judge(result)
    assert verdict.word == "void" and "The teacher learned." in verdict.reason
    passed = below("The student learned.", "loss", 1.85, {"arm": "student"})
    assert study(1.0, control=passed).judge(result).word == "holds"


def test_a_control_that_was_not_recorded_fails() -> None:
    control = above("Ours is above chance.", "accuracy", 0.1)
    assert "not recorded" in control.failure(({"loss": "1"},))
    assert "not recorded" in control.failure(())
    both = Control("Both are there.", lambda rows: numbers(rows, "x") > numbers(rows, "y"))
    assert "not recorded" in both.failure(({"x": "1"},))


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("87.21 ± 0.55", 87.21),
        ("1,184,320", 1184320),
        ("+0.9", 0.9),
        ("0.392, 0.422", 0.392),
        (3, 3.0),
        ("-1.2e-3", -0.0012),
        ("34 (5)", 34),
    ],
)
def test_a_cell_begins_with_its_number(cell: object, number: float) -> None:
    assert numbers(({"x": cell},), "x") == [number]


def test_a_study_without_a_control_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        study(control=None)
    assert error.value.what == "control of claim c"
    with pytest.raises(ConfigError):
        study(sense="==")


@pytest.mark.thorough
@pytest.mark.parametrize("seeds", [2, 3, 5, 14])
def test_without_an_effect_at_most_5_percent_hold(seeds: int) -> None:
    draws = np.random.default_rng(seeds).normal(size=(500, seeds))
    words = [word(tuple(values)) for values in draws]
    # 2.5 % is the rule's own level; 5 % lies 3.6 standard errors of 500 draws above it
    assert max(words.count("holds"), words.count("fails")) <= 0.05 * len(words)
    ties = [word(tuple(values + 1), 1.0, "within") for values in draws]
    assert ties.count("holds") <= 0.05 * len(ties)


def test_items_count_beside_seeds() -> None:
    """Two equally good arms on 40 items that all seeds share: seeds alone would decide."""
    random = np.random.default_rng(0)
    decided = {"seeds": 0, "items": 0}
    for _ in range(200):
        items = [np.arange(40)] * 5
        shared = random.normal(size=40)  # an item's own part of the difference, alike in all seeds
        gaps = [shared + 0.1 * random.normal(size=40) for _ in range(5)]
        values = tuple(float(gap.mean()) for gap in gaps)
        ends = over_items(items, gaps, [np.zeros(40)] * 5)
        result = Result(float(np.mean(values)), 0.0, values, items=ends)
        decided["items"] += study().judge(result).word == "holds"
        decided["seeds"] += word(values) == "holds"
    assert decided["items"] <= 0.05 * 200 < decided["seeds"]


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8, unique=True), st.integers(-50, 50))
def test_a_verdict_turns_with_its_sense(values: list[int], target: int) -> None:
    turned = {"holds": "fails", "fails": "holds", "not decided": "not decided"}
    numbers_ = tuple(map(float, values))
    aim = target + 0.123  # no end of an interval lies on it
    assert word(numbers_, aim, "<=") == turned[word(numbers_, aim, ">=")]


def test_a_smaller_effect_needs_more_seeds() -> None:
    pilot = (1.0, 2.0, 3.0)  # standard deviation 1
    needed = [seeds_needed(pilot, effect) for effect in (2.0, 1.0, 0.5)]
    assert needed == [5, 10, 34]  # of a one-sample t-test at 5 %, for d of 2, 1 and .5
    assert seeds_needed((1.0, 1.0), 0.5) == 2
    assert seeds_needed(pilot, 0.0) is None


def test_what_is_not_decided_says_how_many_seeds_would() -> None:
    verdict = study().judge(result_of((-0.5, 0.5, 1.5), ()))
    assert verdict.word == "not decided" and "about 34 seeds" in verdict.reason


def test_a_headline_without_a_word_on_the_paper_s_effect_is_refused() -> None:
    measure: Any = lambda seeds, report: Result(0, 0, ())  # noqa: E731
    with refused(ConfigError, what="effect of claim c"):
        Study("c", "s", "b", 0.0, ">=", measure, FREE, system="Toys")
    for effect in (Effect(1.0, "table 1"), UnknownEffect("It was not found.")):
        assert Study("c", "s", "b", 0.0, ">=", measure, FREE, effect, system="Toys").effect


def test_the_power_is_that_of_the_paper_s_own_effect() -> None:
    result = result_of((1.0, 2.0, 3.0), ())  # standard deviation 1
    of_one = dataclasses.replace(study(), effect=Effect(1.0, "table 1"))
    assert "10 seeds see the paper's effect with 80 % power" in of_one.power(result)
    ratio = dataclasses.replace(study(), effect=Effect(1.5, "table 1", null=1.0))
    assert "34 seeds" in ratio.power(result)
    assert not study().power(result) and not of_one.power(result_of((1.0,), ()))


def test_the_worst_of_several_says_how_many_seeds_would_decide_it() -> None:
    verdict = study(1.0).judge(Result(0.5, 0.1, (1.1, 2.0, 3.1)))
    assert verdict.word == "not decided" and "seeds would decide it" in verdict.reason
