"""Queues by expert: everybody is served in bounded time, with fewer experts a batch than in order;
and Belady over what is queued."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.core.errors import ConfigError
from intarsia.placement.batching import ExpertQueues, LookAhead, Served, serve
from intarsia.placement.cache import Key, replay
from intarsia.placement.policies import Belady, Expected, Lfu, Lru
from intarsia.placement.trace import Trace

from ..refusals import refused
from .traces import random_trace

Steps = list[list[Key]]


def test_every_token_is_served_once_and_fewer_experts_are_used() -> None:
    trace = random_trace(400, length=20, experts=8)
    for limit in (1, 4, 20, 50):
        aware, fifo = (serve(trace, limit, how=mode) for mode in ("aware", "fifo"))
        for served in (aware, fifo):
            assert sum(map(len, served.batches)) == len(trace) == len(served.waits)
            assert max(map(len, served.batches)) <= limit
            assert sorted(e for b in served.batches for e in b) == sorted(
                trace.expert[:, 0, 0].tolist()
            )
        assert aware.unique <= fifo.unique
    assert serve(trace, 4).unique < 0.75 * serve(trace, 4, how="fifo").unique


def test_in_order_is_the_order_of_arrival_whatever_the_experts() -> None:
    experts = torch.tensor([0, 1, 0, 1, 0, 1])
    row = torch.arange(6)
    served = serve(Trace(experts[:, None, None], 2, row, row * 0), 2, how="fifo")
    assert served.batches == ((0, 1), (0, 1), (0, 1))


@settings(max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 6))
def test_waiting_is_bounded_with_ageing(experts: list[int], limit: int, patience: int) -> None:
    rows = torch.arange(len(experts))
    trace = Trace(torch.tensor(experts)[:, None, None], 6, rows // 4, rows % 4)
    served = serve(trace, limit, patience=patience)
    requests = len(trace.sequence.unique())
    assert max(served.waits) <= patience + math.ceil(requests / limit)
    assert served.wait(1.0) == max(served.waits) >= served.wait(0.5)


def test_the_longest_queues_are_read_ahead_and_fill_the_batch() -> None:
    queues = ExpertQueues(limit=4)
    for name, expert in enumerate((5, 2, 2, 7, 7, 7, 0)):
        queues.add(name, expert)
    assert queues.ahead() == [7, 2, 0, 5] and len(queues) == 7
    assert [w.name for w in queues.batch()] == [3, 4, 5, 1]
    assert queues.ahead() == [0, 2, 5] and len(queues) == 3


def test_a_use_is_known_up_to_the_last_step_and_layer_of_the_window() -> None:
    demand: Steps = [[(0, 0), (1, 0)], [(0, 2), (0, 1), (1, 2), (1, 1)]]
    victims = []
    for window, layer in ((0, 0), (1, 0), (1, 1)):
        policy = LookAhead(2, 3, demand, window)
        policy.began()
        policy.asked(layer, [0])
        victims.append([policy.victim([(depth, 1), (depth, 2)]) for depth in (0, 1)])
    # of unknown uses that are equally likely the last key goes, of known ones the later use
    assert victims == [[(0, 2), (1, 2)], [(0, 1), (1, 2)], [(0, 1), (1, 1)]]


def test_a_record_counts_experts_switches_and_waits() -> None:
    served = Served(((0, 0, 1), (1, 2), (2, 2), ()), (3, 0, 1, 2))
    assert served.unique == (2 + 2 + 1 + 0) / 4 and served.switches == 2 + 1 + 0 + 0
    assert [served.wait(q) for q in (0, 0.25, 0.5, 0.51, 0.95, 1)] == [0, 0, 1, 2, 3, 3]
    assert (Served((), ()).unique, Served((), ()).switches, Served((), ()).wait()) == (0, 0, 0)


def test_requests_of_an_expert_are_served_in_the_order_in_which_they_came() -> None:
    queues = ExpertQueues(limit=1)
    for name in "abc":
        queues.add(name, 0)
    assert [queues.batch()[0].name for _ in range(3)] == ["a", "b", "c"]


def test_a_rare_expert_waits_for_ever_without_ageing() -> None:
    queues = ExpertQueues(limit=2, patience=math.inf)
    queues.add("rare", 7)
    for turn in range(50):
        for name in "abcd":
            if name not in queues.names:
                queues.add(name, 0)
        batch = queues.batch()
        assert "rare" not in [w.name for w in batch], turn
    queues.patience = 8
    assert queues.batch()[0].name == "rare"
    assert queues.ahead() == [0]
    with refused(ConfigError, what="request"):
        queues.add("a", 1)
        queues.add("a", 1)


def test_a_stream_that_ends_makes_room() -> None:
    trace = random_trace(60, length=10)
    served = serve(trace, 4, streams=1)
    assert len(served.batches) == 60 and set(served.waits) == {0}
    assert served.switches == 1 + sum(
        a != b for a, b in zip(served.batches, served.batches[1:], strict=False)
    )
    wrong = ({"limit": 0}, {"patience": 0}, {"how": "lifo"}, {"streams": 0}, {"layer": 3})
    for bad in ({"limit": 2} | served for served in wrong):
        with pytest.raises(ConfigError):
            serve(trace, **bad)  # pyright: ignore


def fewest(demand: tuple[Key, ...], slots: int) -> int:
    """Loads of the best choices, by trying all."""

    @lru_cache
    def left(step: int, inside: frozenset[Key]) -> int:
        if step == len(demand):
            return 0
        key = demand[step]
        if key in inside:
            return left(step + 1, inside)
        outs = [None] if len(inside) < slots else list(inside)
        return 1 + min(left(step + 1, (inside - {out}) | {key}) for out in outs)

    return left(0, frozenset())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(2, 3))
def test_belady_is_the_best_there_is(experts: list[int], slots: int) -> None:
    demand: Steps = [[(0, e)] for e in experts]
    best = fewest(tuple(key for step in demand for key in step), slots)
    assert replay(demand, Belady(1, 4, demand), slots).loads == best
    assert replay(demand, LookAhead(1, 4, demand, len(demand)), slots).loads == best
    for policy in (Lru(), Lfu(), Expected()):
        assert replay(demand, policy.build(1, 4), slots).loads >= best


def test_looking_ahead_lies_between_expected_and_belady() -> None:
    draws = torch.Generator().manual_seed(0)
    liked = torch.rand(2, 8, generator=draws) * 2
    demand: Steps = []
    for _ in range(60):
        experts = (liked + torch.randn(2, 8, generator=draws)).topk(2).indices.sort(1).values
        demand.append([(layer, int(e)) for layer in range(2) for e in experts[layer]])
    loads = [replay(demand, LookAhead(2, 8, demand, w), 5).loads for w in (0, 1, 8, 60)]
    assert loads[0] == replay(demand, Expected().build(2, 8), 5).loads
    assert loads[3] == replay(demand, Belady(2, 8, demand), 5).loads
    assert loads[0] > loads[1] >= loads[2] >= loads[3]
