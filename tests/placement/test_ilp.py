"""One option for each item, against every choice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from intarsia.placement.ilp import LinearRule, OneHot

COST = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
SIZE = np.array([1.0, 2.0, 4.0])  # of the options


def best(limit: float, kinds: int) -> float:
    """Find the best choice by brute force: sizes of at most `limit`, `kinds` different options."""
    return min(
        sum(float(COST[i, c]) for i, c in enumerate(way))
        for way in itertools.product(range(3), repeat=3)
        if sum(SIZE[list(way)]) <= limit and len(set(way)) <= kinds
    )


@pytest.mark.parametrize(("limit", "kinds"), [(12, 3), (7, 2), (6, 2), (5, 1), (3, 3)])
def test_three_items_and_options_are_brute_force_s(limit: float, kinds: int) -> None:
    identity = np.eye(9)
    rules = [
        LinearRule(np.tile(SIZE, 3)[None], high=limit),
        LinearRule(identity, high=0, extra=-np.tile(np.eye(3), (3, 1))),  # x_ic <= z_c
        LinearRule(np.zeros((1, 9)), high=kinds, extra=np.ones((1, 3))),
    ]
    option = OneHot(COST, torch.zeros(3), extra_binary=True, rules=rules).solve(gap=0)
    assert option is not None
    assert float(COST.gather(1, option[:, None]).sum()) == pytest.approx(best(limit, kinds))


def test_what_cannot_be_is_none_and_what_is_set_stays() -> None:
    too_small = LinearRule(np.tile(SIZE, 3)[None], high=2)
    assert OneHot(COST, rules=[too_small]).solve() is None
    option = OneHot(COST, fixed=[(1, 2)]).solve()
    assert option is not None
    assert int(option[1]) == 2


def test_an_option_that_costs_infinity_is_not_taken() -> None:
    cost = COST.clone()
    cost[0, int(cost[0].argmin())] = torch.inf
    option = OneHot(cost).solve()
    assert option is not None
    assert torch.equal(option, cost.argmin(1))
