"""An interval lies to the sign of the paper's effect in one of three ways, or there is no word."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia_lab.kit import Effect, Result, over_items, word_of
from intarsia_lab.kit.arms import result_of


def effect(sign: int, null: float = 0.0) -> Effect:
    return Effect("more", "a toy", "table 1", sign, null=null)  # pyright: ignore


@pytest.mark.parametrize(
    ("sign", "null", "interval", "says"),
    [
        (1, 0, (0.1, 0.2), "same sign"),
        (-1, 0, (0.1, 0.2), "opposite"),
        (-1, 1, (0.8, 0.9), "same sign"),
        (1, 1, (0.8, 0.9), "opposite"),
        (1, 0, (-0.1, 0.2), "unclear"),
        (1, 1, (1.0, 1.2), "unclear"),  # no effect is an end of it
        (0, 0, (0.1, 0.2), ""),  # as good as, by no margin
        (1, 0, None, ""),  # a single value
    ],
)
def test_a_word_is_how_the_interval_lies(
    sign: int, null: float, interval: tuple[float, float] | None, says: str
) -> None:
    assert word_of(effect(sign, null), interval) == says
    assert word_of(None, interval) == ""


@given(st.floats(-9, 9), st.floats(-9, 9), st.sampled_from([-1, 1]))
def test_a_word_turns_with_the_paper_s_sign(one: float, two: float, sign: int) -> None:
    turned = {"same sign": "opposite", "opposite": "same sign", "unclear": "unclear"}
    interval = min(one, two), max(one, two)
    assert word_of(effect(-sign), interval) == turned[word_of(effect(sign), interval)]


def test_a_single_value_has_no_interval() -> None:
    assert result_of((1.0,), ()).interval is None
    assert Result(1.0, (1.0,), items=(0.5, 1.5)).interval == (0.5, 1.5)


def test_items_count_beside_seeds() -> None:
    """Two equally good arms on 40 items that all seeds share: seeds alone would tell them apart."""
    random = np.random.default_rng(0)
    apart = {"seeds": 0, "items": 0}
    for _ in range(200):
        items = [np.arange(40)] * 5
        shared = random.normal(size=40)  # an item's own part of the difference, alike in all seeds
        gaps = [shared + 0.1 * random.normal(size=40) for _ in range(5)]
        values = tuple(float(gap.mean()) for gap in gaps)
        ends = over_items(items, gaps, [np.zeros(40)] * 5)
        apart["items"] += word_of(effect(1), ends) == "same sign"
        apart["seeds"] += word_of(effect(1), result_of(values, ()).interval) == "same sign"
    assert apart["items"] <= 0.05 * 200 < apart["seeds"]
