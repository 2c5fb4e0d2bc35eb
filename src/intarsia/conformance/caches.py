"""Laws of a cache's policy: it chooses among the experts it is offered, and the same each time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..core import Card
from ..placement.cache import Key, Policy, Residency, by_layer, replay
from .cards import CARD_LAWS, tiny
from .made import seeded
from .verdict import Law, laws_of, require, require_equal

LAYERS, EXPERTS, STEPS = 3, 6, 40


def asked(seed: int = 0) -> list[list[Key]]:
    """Make up a demand for experts: for each of STEPS steps of decoding a list of (layer, expert).

    A step needs two or three experts of each layer, some much more often than others.
    """
    draws = seeded(seed)
    # popular experts make the policies differ; noise makes every expert appear
    popularity = 2 * torch.rand(LAYERS, EXPERTS, generator=draws)
    demand: list[list[Key]] = []
    for step in range(STEPS):
        scores = popularity + torch.randn(LAYERS, EXPERTS, generator=draws)
        experts = scores.topk(2 + step % 2).indices.sort(1).values
        demand.append([(layer, int(e)) for layer in range(LAYERS) for e in experts[layer]])
    return demand


def _policy(card: Card) -> Policy:
    config: Any = tiny(card)
    return config.build(LAYERS, EXPERTS)


def _run(card: Card, slots: int, demand: list[list[Key]] | None = None) -> Residency:
    """Simulate a cache of experts under a policy; return the counts of its requests and loads."""
    return replay(asked() if demand is None else demand, _policy(card), slots)


def serves_every_ask(card: Card) -> None:
    """Check that a cache under the policy serves each request once: as a hit, or by a load."""
    all_experts = [
        [(layer, e) for layer in range(LAYERS) for e in range(EXPERTS)] for _ in range(3)
    ]
    for demand in (asked(), all_experts, [[]]):
        # two slots hold the experts of one step at most
        for slots in (2, 7, LAYERS * EXPERTS):
            want = sum(map(len, demand))
            require_equal(_run(card, slots, demand).asks, want, "Serve each ask once.")


def loads_each_once_where_all_fit(card: Card) -> None:
    """Check that a cache with room for all experts loads each of them once, when first needed."""
    # different experts, not requests
    want = len({key for step in asked() for key in step})
    loads = _run(card, LAYERS * EXPERTS).loads
    require_equal(loads, want, "Evict nothing while there is room.")


def chooses_what_it_is_offered(card: Card) -> None:
    """Check that the policy's `victim` returns one of the experts that may be evicted."""
    policy = _policy(card)
    offered: list[list[Key]] = []
    victims: list[Key] = []
    victim = policy.victim

    def watched(resident: Iterable[Key]) -> Key:
        """Record what may be evicted and what the policy chooses; evict the first one."""
        offered.append(list(resident))
        victims.append(victim(list(offered[-1])))
        return offered[-1][0]

    # replace the policy's method by one that records the experts offered
    policy.victim = watched
    replay(asked(), policy, 4)
    wrong = [key for key, candidates in zip(victims, offered, strict=True) if key not in candidates]
    require(not wrong, f"{wrong[:1]} to be evicted", "one of those offered", "Choose among them.")


def decides_alike(card: Card) -> None:
    """Check that the policy loads the same experts in the same order each time."""
    runs: list[list[Key]] = []
    for _ in range(2):
        # a draw from torch's generator would change the second run
        torch.rand(3)
        policy = _policy(card)
        loaded: list[Key] = []
        used = policy.used

        def noted(key: Key, hit: bool, used: Any = used, into: list[Key] = loaded) -> None:
            """Record an expert that was loaded, then call the policy's own `used`."""
            if not hit:
                into.append(key)
            used(key, hit)

        policy.used = noted
        replay(asked(), policy, 5)
        runs.append(loaded)
    require(runs[0] == runs[1], "other loads", "the same", "Draw nothing; break ties by key.")


def survives_steps_of_one_layer(card: Card) -> None:
    """Check that the policy serves a model of one layer, and steps that skip layers."""
    config: Any = tiny(card)
    # the experts of each step as those of layer 0, and two at most, as many as the cache holds
    one_layer = [[(0, e) for _, e in step if e < EXPERTS][:2] for step in asked()]
    for layers in (1, LAYERS):
        residency = replay(one_layer, config.build(layers, EXPERTS), 2)
        require_equal(residency.asks, sum(map(len, one_layer)), "Count layers, not asks.")
    # a step may name one layer only, as an early exit does
    skipped = [list(by_layer(step).items())[0] for step in asked()]
    demand = [[(layer, e) for e in experts] for layer, experts in skipped]
    require_equal(_run(card, 3, demand).asks, sum(map(len, demand)), "A layer may be missing.")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
