"""Laws of a cache's policy: it chooses among what it is offered, and the same each time."""

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
    """Steps of two or three experts a layer, some of them much more often."""
    draws = seeded(seed)
    liked = 2 * torch.rand(LAYERS, EXPERTS, generator=draws)
    found: list[list[Key]] = []
    for step in range(STEPS):
        scores = liked + torch.randn(LAYERS, EXPERTS, generator=draws)
        chosen = scores.topk(2 + step % 2).indices.sort(1).values
        found.append([(layer, int(e)) for layer in range(LAYERS) for e in chosen[layer]])
    return found


def _policy(card: Card) -> Policy:
    config: Any = tiny(card)
    return config.build(LAYERS, EXPERTS)


def _run(card: Card, slots: int, demand: list[list[Key]] | None = None) -> Residency:
    return replay(asked() if demand is None else demand, _policy(card), slots)


def serves_every_ask(card: Card) -> None:
    """hits + loads = asks, with two slots, a few, and all; also where a layer asks for all."""
    whole = [[(layer, e) for layer in range(LAYERS) for e in range(EXPERTS)] for _ in range(3)]
    for demand in (asked(), whole, [[]]):
        for slots in (2, 7, LAYERS * EXPERTS):
            want = sum(map(len, demand))
            require_equal(_run(card, slots, demand).asks, want, "Serve each ask once.")


def loads_each_once_where_all_fit(card: Card) -> None:
    """With a slot for each expert, each is loaded once, when it is first asked for."""
    want = len({key for step in asked() for key in step})
    found = _run(card, LAYERS * EXPERTS).loads
    require_equal(found, want, "Evict nothing while there is room.")


def chooses_what_it_is_offered(card: Card) -> None:
    """`victim` gives one of those that may go: none that is in use, or not there."""
    policy = _policy(card)
    offered: list[list[Key]] = []
    chosen: list[Key] = []
    own = policy.victim

    def watched(resident: Iterable[Key]) -> Key:
        offered.append(list(resident))
        chosen.append(own(list(offered[-1])))
        return offered[-1][0]

    policy.victim = watched
    replay(asked(), policy, 4)
    wrong = [key for key, some in zip(chosen, offered, strict=True) if key not in some]
    require(not wrong, f"{wrong[:1]} to be evicted", "one of those offered", "Choose among them.")


def decides_alike(card: Card) -> None:
    """The same asks, the same loads, in the same order; nothing is drawn."""
    found: list[list[Key]] = []
    for _ in range(2):
        torch.rand(3)
        policy = _policy(card)
        loaded: list[Key] = []
        own = policy.used

        def noted(key: Key, hit: bool, own: Any = own, into: list[Key] = loaded) -> None:
            if not hit:
                into.append(key)
            own(key, hit)

        policy.used = noted
        replay(asked(), policy, 5)
        found.append(loaded)
    require(found[0] == found[1], "other loads", "the same", "Draw nothing; break ties by key.")


def survives_steps_of_one_layer(card: Card) -> None:
    """A model of one layer, and one whose steps leave layers out, are served, too."""
    config: Any = tiny(card)
    few = [[(0, e) for _, e in step if e < EXPERTS][:2] for step in asked()]
    for layers in (1, LAYERS):
        found = replay(few, config.build(layers, EXPERTS), 2)
        require_equal(found.asks, sum(map(len, few)), "Count layers, not asks.")
    skipped = [list(by_layer(step).items())[0] for step in asked()]
    demand = [[(layer, e) for e in experts] for layer, experts in skipped]
    require_equal(_run(card, 3, demand).asks, sum(map(len, demand)), "A layer may be missing.")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
