"""Experts that are predicted: a table against a loop, one step known, regrouping by brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from intarsia.core.errors import ConfigError, DataError
from intarsia.placement import Belady, Trace, replay
from intarsia.placement.cache import most_used
from intarsia.placement.describe import demand
from intarsia.placement.expertflow import (
    Predictive,
    TokenTable,
    active,
    predicted_steps,
    recall,
    regroup,
)
from intarsia.placement.policies import Expected, Lru

from ..refusals import refused
from .traces import random_trace


def spoken(tokens: int = 300) -> Trace:
    """Experts that mostly depend on the token."""
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(12, (tokens,), generator=draws)
    likes = 3 * torch.randn(12, 4, 8, generator=draws)
    scores = likes[ids] + torch.randn(tokens, 4, 8, generator=draws)
    row = torch.arange(tokens)
    return Trace(scores.topk(2).indices, 8, row // 15, row % 15, token=ids)


class Perfect:
    """Knows the steps, in their order."""

    def __init__(self, trace: Trace, streams: int) -> None:
        self.steps = [
            torch.stack(
                [trace.rows(rows).membership(layer).amax(0) for layer in range(trace.layers)]
            )
            for rows in trace.steps(streams)
        ]

    def chances(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.steps.pop(0)


def test_a_table_is_the_shares_of_a_loop(tmp_path: Path) -> None:
    trace = random_trace()
    table = TokenTable.of(trace, smoothing=0.5)
    assert trace.token is not None
    rows = (trace.token == 4).nonzero().flatten().tolist()
    mean = trace.load().double() / len(trace)
    want = torch.zeros(3, 8, dtype=torch.float64)
    for row in rows:
        for layer in range(3):
            want[layer, trace.expert[row, layer].long()] += 1
    want = (want + 0.5 * mean) / (len(rows) + 0.5)
    torch.testing.assert_close(
        table.per_token(torch.tensor([4]))[0].double(), want, rtol=0, atol=1e-6
    )
    for unknown in (-1, 10_000):
        shares = table.per_token(torch.tensor([unknown]))[0].double()
        torch.testing.assert_close(shares, mean, rtol=0, atol=1e-6)
    both = table.chances(torch.tensor([4, 7]))
    a, b = table.per_token(torch.tensor([4, 7]))
    torch.testing.assert_close(both, a + b - a * b)
    again = TokenTable.load_file(table.save(tmp_path / "t.safetensors"))
    assert torch.equal(again.share, table.share)
    with pytest.raises(DataError, match="TokenTable"):
        TokenTable.load_file(tmp_path)
    with refused(DataError, what="trace", got="no token ids"):
        TokenTable.of(replace(trace, token=None))


def test_tokens_foretell_more_than_frequency() -> None:
    learned, unseen = spoken().split()
    nothing = replace(learned, token=torch.zeros_like(learned.sequence))  # all tokens alike
    assert recall(TokenTable.of(learned), unseen) > 0.1 + recall(TokenTable.of(nothing), unseen)


def test_one_step_ahead_recovers_most_of_belady_where_lru_has_nothing() -> None:
    trace = spoken()
    steps, slots = demand(trace, 4), 8
    start = most_used(steps, slots)
    predicted = predicted_steps(trace, Perfect(trace, 4), 4)
    wrong = [1 - chances for chances in predicted]
    rates = {
        "lru": replay(steps, Lru().build(4, 8), slots, start=start).rate,
        "expected": replay(steps, Expected().build(4, 8), slots, start=start).rate,
        "perfect": replay(
            steps, Predictive().build(4, 8), slots, start=start, foreseen=predicted
        ).rate,
        "wrong": replay(steps, Predictive().build(4, 8), slots, start=start, foreseen=wrong).rate,
        "belady": replay(steps, Belady(4, 8, steps), slots, start=start).rate,
    }
    assert rates["lru"] < 0.05 and rates["perfect"] > 0.75 * rates["belady"]
    assert rates["wrong"] < rates["perfect"] <= rates["belady"]
    blind = replay(steps, Predictive().build(4, 8), slots, start=start).rate
    assert blind == rates["expected"]


def test_the_next_use_by_hand() -> None:
    """Layer 2 of four, from layer 0 on: 2 layers away, and (1 - q) L / p = .75 x 4 / .5 = 6 more.

    Expert 1 was used in one of two steps, p = 1 / 2, and its chance in this one is q = 1 / 4.
    """
    policy: Any = Predictive(decay=1.0).build(4, 2)
    for expert in (1, 0):
        policy.began()
        policy.asked(2, [expert])
    policy.foresee(torch.full((4, 2), 0.25))
    policy.asked(0, [])
    assert policy.expected((2, 1)) == 2 + 6


def test_likely_experts_of_later_layers_are_read_ahead_the_likeliest_first() -> None:
    policy: Any = Predictive(likely=0.5).build(3, 3)
    policy.began()
    policy.foresee(torch.tensor([[0.9, 0.1, 0.6], [0.5, 0.8, 0.4], [0.2, 0.5, 0.5]]))
    for layer, want in enumerate([[(1, 1), (1, 0), (2, 1), (2, 2)], [(2, 1), (2, 2)], []]):
        policy.asked(layer, [0])
        assert list(policy.coming()) == want
    policy.foresee(None)
    assert list(policy.coming()) == []


def test_predictions_of_another_model_are_refused() -> None:
    policy = Predictive().build(4, 8)
    with refused(ConfigError, what="predictor", got="chances (3, 8)"):
        policy.foresee(torch.zeros(3, 8))


def test_four_sequences_are_regrouped_by_hand() -> None:
    """min sum over batches of |OR of their routes|, one layer of three experts.

    Sequences ask for {0}, {1, 2}, {0}, {1, 2}. As they came, batches (0, 1) and (2, 3) have
    {0, 1, 2} each, 3 + 3 = 6 active experts; (0, 2) and (1, 3) have {0} and {1, 2}, 1 + 2 = 3.
    """
    routes = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 0, 0], [0, 1, 1]]).bool()[:, None]
    assert active(routes, [[0, 1], [2, 3]]) == 6
    batches = regroup(routes)
    assert sorted(map(sorted, batches)) == [[0, 2], [1, 3]] and active(routes, batches) == 3


def test_a_sweep_may_swap_as_often_as_there_are_sequences() -> None:
    # two swaps make pairs that ask for the same expert
    experts = torch.tensor([0, 1, 0, 1, 2, 3, 2, 3])
    routes = torch.nn.functional.one_hot(experts, 4).bool()[:, None]
    assert active(routes, regroup(routes, 4, sweeps=1)) == 4


@pytest.mark.parametrize("seed", range(3))
def test_regrouping_is_never_worse_and_near_the_best(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    routes = torch.rand(8, 2, 6, generator=draws) < 0.3
    arrival = active(routes, [range(4), range(4, 8)])
    batches = regroup(routes)
    assert sorted(batches[0] + batches[1]) == list(range(8)) and len(batches[0]) == 4
    best = min(
        active(routes, [some, [s for s in range(8) if s not in some]])
        for some in itertools.combinations(range(8), 4)
    )
    assert best <= active(routes, batches) <= arrival
    assert active(routes, batches) - best <= 1
    assert regroup(routes.float(), 4) == regroup(routes, 4)
    with refused(ConfigError, what="groups", got="3 batches of 8 sequences"):
        regroup(routes, 3)
