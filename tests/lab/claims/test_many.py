"""Chance alone puts some of many claims on one side: Holm's correction leaves the sure ones."""

import pytest
from scipy.stats import ttest_1samp

from intarsia_lab.claims.many import on_one_side, p_value
from intarsia_lab.kit import NoControl, Result, Study


def a_pair(values, target=0.0, sense=">=", items=None):
    result = Result(sum(values) / len(values), 0.0, tuple(values), items=items)
    return Study(
        "toy", "It is.", "theirs", target, sense, lambda *_: result, NoControl("A.")
    ), result


def test_p_is_that_of_student_s_test():
    values = (0.1, 0.4, 0.2, 0.7)
    for target in (0.0, 0.3, 1.0):
        expected = ttest_1samp(values, target).pvalue
        assert p_value(*a_pair(values, target)) == pytest.approx(expected)
    # a tie has two targets, of which the nearer one counts
    within = p_value(*a_pair([-v for v in values], 1.0, "within"))
    assert within == pytest.approx(ttest_1samp(values, 1.0).pvalue)
    assert p_value(*a_pair((0.5,))) is None and p_value(*a_pair((1.0, 1.0))) == 0.0
    assert p_value(*a_pair((1.0, 2.0), items=(float("-inf"), 3.0))) is None


def test_holm_counts_all_of_them():
    sure, maybe, nothing = (1.0, 1.01, 0.99), (0.9, 1.0, 1.4), (-1.0, 1.0, 0.1)
    pairs = [a_pair(values) for values in (sure, *[maybe] * 3, *[nothing] * 6, (1.0,))]
    assert on_one_side(pairs) == (10, 4, 1)
    assert on_one_side([]) == (0, 0, 0)
