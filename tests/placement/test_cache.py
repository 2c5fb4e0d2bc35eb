"""Caches against brute force, by hand, and where LRU is known to hit nothing."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from intarsia.core.errors import ConfigError
from intarsia.placement import Belady, Cache, replay
from intarsia.placement.cache import Key, PolicyConfig, Residency, most_used
from intarsia.placement.describe import demand
from intarsia.placement.policies import Expected, Lfu, Lru, NextUse

from ..refusals import refused
from .traces import random_trace

POLICIES: dict[str, PolicyConfig] = {"lru": Lru(), "lfu": Lfu(), "expected": Expected()}


def fewest(asks: tuple[Key, ...], slots: int, start: frozenset[Key]) -> int:
    """The fewest loads there can be, by trying every eviction."""

    @functools.cache
    def best(step: int, inside: frozenset[Key]) -> int:
        if step == len(asks):
            return 0
        key = asks[step]
        if key in inside:
            return best(step + 1, inside)
        if len(inside) < slots:
            return 1 + best(step + 1, inside | {key})
        return 1 + min(best(step + 1, inside - {out} | {key}) for out in inside)

    return best(0, start)


@pytest.mark.parametrize("seed", range(4))
def test_belady_is_the_bound_from_the_same_contents(seed: int) -> None:
    trace = random_trace(tokens=6, layers=2, experts=4, length=3, seed=seed)
    steps = [[key] for step in demand(trace, 1) for key in step][:14]  # one at a time: no wishes
    start = most_used(steps[::2], 3)
    loads = replay(steps, Belady(2, 4, steps), 3, start=start).loads
    asks = tuple(key for step in steps for key in step)
    assert loads == fewest(asks, 3, frozenset(start))
    for policy in POLICIES.values():
        assert replay(steps, policy.build(2, 4), 3, start=start).loads >= loads


def test_a_cache_begins_with_what_most_steps_used() -> None:
    steps = [[(0, 2), (0, 0)], [(0, 2)], [(0, 1), (0, 2)], [(0, 1)]]
    assert most_used(steps, 2) == [(0, 2), (0, 1)]
    assert most_used(steps, 5) == [(0, 2), (0, 1), (0, 0)]


def test_several_streams_leave_lru_nothing() -> None:
    """A step asks for more experts than there are slots: what was just used is not used next."""
    trace = random_trace(tokens=240, layers=4, experts=8, k=2, length=20)
    steps = demand(trace, 4)
    slots = 8
    assert min(map(len, steps)) > slots
    start = most_used(steps, slots)
    rates = {n: replay(steps, p.build(4, 8), slots, start=start).rate for n, p in POLICIES.items()}
    assert rates["lru"] < 0.02 < rates["lfu"]
    assert rates["expected"] > 0.15
    assert rates["expected"] <= replay(steps, Belady(4, 8, steps), slots, start=start).rate


def test_lfu_keeps_the_counter_of_what_went() -> None:
    """1 was used three times, went for 3, and comes back with four uses; then 3 asks again.

    With its counter kept 1 is in when it is asked for; counted from 1 again it went for 3.
    """
    steps = [[(0, expert)] for expert in [1] * 3 + [2] * 4 + [3, 1, 3, 1]]
    hits = {r: replay(steps, Lfu(reset=r).build(1, 4), 2).hits for r in (False, True)}
    assert hits == {False: 6, True: 5}


def test_lfu_halves_its_counters_at_every_third_step() -> None:
    policy: Any = Lfu(every=3, decay=0.5).build(1, 2)
    policy.began()
    policy.used((0, 0), True)
    counters: list[float] = []
    for _ in range(5):
        policy.began()
        counters.append(policy.uses[0, 0])
    assert counters == [1, 0.5, 0.5, 0.5, 0.25]  # steps 2 to 6


def test_lfu_beats_lru_where_some_experts_are_used_more_than_others() -> None:
    trace = random_trace(tokens=240, layers=4, experts=8, k=2, length=20)
    for streams in (1, 2):
        steps = demand(trace, streams)
        rates = {n: replay(steps, p.build(4, 8), 8).rate for n, p in POLICIES.items()}
        assert rates["lfu"] >= rates["lru"]


def test_lfu_forgets_and_may_start_at_one() -> None:
    policy = Lfu(every=2, decay=0.5, reset=True).build(1, 4)
    cache = Cache(2, policy)
    for expert in (0, 0, 0, 1, 2):  # 0 has 3 hits to come, 1 goes
        cache.begin()
        cache.ask(0, [expert])
        grant = cache.take((0, expert))
        cache.give((0, expert))
    assert grant.out == (0, 1) and set(cache.at) == {(0, 0), (0, 2)}  # pyright: ignore
    assert (cache.hits, cache.loads) == (2, 3)


def test_the_next_use_is_expected_from_decayed_shares_and_the_way_to_the_layer() -> None:
    policy = NextUse(2, 3, 0.5)
    for experts in ([0], [1], [0, 1]):
        policy.began()
        policy.asked(0, experts)
        policy.asked(1, experts)
    shares = [(0.25 + 1) / 1.75, (0.5 + 1) / 1.75, 0]
    assert [policy.chance((1, e)) for e in range(3)] == pytest.approx(shares)
    # layer 1 asked last: layer 0 is next, its own comes round again
    assert [policy.away((layer, 0)) for layer in (0, 1)] == [1, 2]
    for layer, way in ((0, 1), (1, 2)):
        for expert in (0, 1):
            want = way + 2 * (1 / shares[expert] - 1)
            assert policy.expected((layer, expert)) == pytest.approx(want)
    assert policy.victim([(0, 0), (0, 1), (1, 0), (1, 1)]) == (1, 0)
    assert policy.victim([(0, 0), (1, 2), (1, 0)]) == (1, 2)
    policy.asked(0, [0])  # values of `expected` are of this layer now
    assert policy.expected((1, 1)) < policy.expected((0, 1))
    always = NextUse(1, 2, 1.0)
    for experts in ([0], [1], [0], [0]):
        always.began()
        always.asked(0, experts)
    assert [always.chance((0, e)) for e in (0, 1)] == [0.75, 0.25]


def test_a_policy_is_of_the_layers_and_experts_of_its_model() -> None:
    for policy in (*(p.build(2, 5) for p in POLICIES.values()), Belady(2, 5, [])):
        assert (policy.layers, policy.experts) == (2, 5)


def test_the_rate_of_a_cache_is_of_hits_among_what_was_asked() -> None:
    counts = Residency(hits=3, loads=1, ahead=7)
    assert (counts.asks, counts.rate, Residency().rate) == (4, 0.75, 0)


def test_what_is_read_ahead_is_counted_and_in_use_until_it_is_given() -> None:
    cache = Cache(2, Lru().build(1, 4))
    for expert in (0, 1):
        assert cache.bring((0, expert)) is not None
    assert cache.ahead == 2 and cache.bring((0, 0)) is None and cache.loads == 0
    cache.give((0, 0))
    cache.give((0, 1))
    assert not cache.take((0, 1)).load
    cache.give((0, 1))
    assert (cache.hits, cache.loads, cache.pinned) == (1, 0, {})


def test_the_least_used_goes_and_of_equals_the_least_recent() -> None:
    lru, lfu = Lru().build(1, 4), Lfu(decay=0.5, every=2).build(1, 4)
    for policy in (lru, lfu):
        for expert in (0, 1, 0, 2, 1, 0):
            policy.used((0, expert), True)
    keys = [(0, e) for e in range(3)]
    assert lru.victim(keys) == (0, 2) and lfu.victim(keys) == (0, 2)
    assert lru.victim(keys[:2]) == (0, 1) and lfu.victim(keys[:2]) == (0, 1)
    assert lru.victim([*keys, (0, 3)]) == (0, 3) and lfu.victim([*keys, (0, 3)]) == (0, 3)
    lfu.used((0, 2), True)
    assert lfu.victim(keys[1:]) == (0, 1)  # both twice, 2 later


def test_what_is_in_use_or_wanted_stays() -> None:
    cache = Cache(2, Lru().build(2, 4))
    cache.begin()
    cache.ask(0, [0, 1, 2])
    cache.take((0, 0))
    cache.take((0, 1))
    with refused(ConfigError, what="slots", got="2 experts in use at once"):
        cache.take((0, 2))
    cache.give((0, 1))
    assert cache.take((0, 2)).out == (0, 1)
    cache.give((0, 0))
    cache.give((0, 2))
    cache.ask(1, [0, 1])
    cache.take((1, 0))
    cache.give((1, 0))
    cache.drop((1, 0))
    assert (1, 0) not in cache.at and cache.free
    announced = Cache(2, Lru().build(1, 4))
    announced.fill([(0, 0), (0, 1)])
    announced.begin()
    announced.ask(0, [0, 2])
    assert announced.take((0, 2)).out == (0, 1)  # 0 is wanted next, though it is the older one


def test_too_few_slots_are_refused() -> None:
    for slots in (0, 1):
        with refused(ConfigError, what="slots", want="at least 2"):
            Cache(slots, Lru().build(1, 1))
    with refused(ConfigError, what="decay", got=1.5):
        Expected(1.5)
    with refused(ConfigError, what="every", got=0):
        Lfu(every=0)
