"""Every setting decides something: with another value a method builds or computes another thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from intarsia.catalog import cards
from intarsia.conformance import batches, caches, cells, mixtures, objectives, placements
from intarsia.conformance.made import normal, seeded
from intarsia.conformance.sparse_schedules import STEPS, MaskedRun
from intarsia.conformance.sparse_schedules import net as masked_net
from intarsia.core import Card
from intarsia.core.schema import settings_of, words
from intarsia.gating import before_step
from intarsia.placement.cache import replay
from intarsia.placement.topology import Topology
from intarsia.schedules import SparseSchedule


def of_adapter(card: Card) -> list[Any]:
    """Which layers get a cell, its first weights, and its outputs in training and evaluation."""
    settings: Any = card.config(**card.tiny)
    start, later = cells.build(card), cells.trained(card)
    x = cells.inputs(card, 8)
    outputs = [*(later.train()(x) for _ in range(4)), later.eval()(x)]
    return [settings.roles, settings.position, *start.state_dict().values(), *outputs]


def of_router(card: Card) -> list[Any]:
    """First weights, and the routings of a training and of evaluation."""
    router = batches.build(card)
    made: list[Any] = [*router.state_dict().values()]
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.add_(normal(*parameter.shape, seed=3))
    for step in range(4):
        before_step(router, step, 4)
        x = normal(12, batches.WIDTH, seed=step)
        for training in (True, False):
            routing = router.train(training)(x)
            made += [routing.dense(), *routing.losses.values()]
    return made


def of_cache(card: Card) -> list[Any]:
    config: Any = card.config(**card.tiny)
    demand = [caches.asked(seed) for seed in range(4)]
    return [replay(d, config.build(caches.LAYERS, caches.EXPERTS), s) for d in demand for s in (5, 9)]


def of_placement(card: Card) -> list[Any]:
    config: Any = card.config(**card.tiny)
    found = [config.place(placements.routed(seed), Topology.two_level(2, 2)) for seed in range(4)]
    return [tensor for placement in found for tensor in (placement.owner, placement.holds)]


def of_schedule(card: Card) -> list[Any]:
    run, made = MaskedRun(card.config(**card.tiny), masked_net()), []
    for step in range(STEPS):
        run.step(step)
        made += [p.detach().clone() for p in run.model.parameters()]
    return made


def of_mixture(card: Card) -> list[Any]:
    module = mixtures._module(card).double()
    x = mixtures.stream(1)
    return [*module.state_dict().values(), *mixtures._outputs_of(module, x)]


def of_objective(card: Card) -> list[Any]:
    outcome = objectives.outcome(card, objectives.net(0), objectives.net(1))
    return [outcome.loss, *outcome.parts.values()]


MADE: dict[str, Callable[[Card], list[Any]]] = {
    "adapter": of_adapter,
    "router": of_router,
    "cache": of_cache,
    "placement": of_placement,
    "schedule": of_schedule,
    "mixture": of_mixture,
    "objective": of_objective,
}


def plain(made: list[Any]) -> str:
    torch.set_printoptions(precision=10)
    return repr([x.detach().double().tolist() if isinstance(x, Tensor) else x for x in made])


def others(setting: Any, value: Any) -> Iterator[Any]:
    choices = words(setting.choices)
    if choices:
        yield from (word for word in choices if word != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, 2 * value, value - 1, value // 2)
    elif isinstance(value, float):
        yield from (value / 2, 2 * value, value + 0.3, 0.5 * (1 + value), value + 1)
    elif value is None:
        yield from (2, 1, 3, 0.3, 0.7, 1.5, True)
    elif isinstance(value, tuple) and value and isinstance(value[0], (int, float)):
        yield tuple(2 * v for v in value)
        yield tuple(0.5 * v for v in value)


if __name__ == "__main__":
    import time, warnings
    warnings.simplefilter("ignore")
    for card in cards():
        made = MADE.get(card.kind)
        if made is None or (card.kind == "schedule" and not isinstance(card.config(**card.tiny), SparseSchedule)):
            continue
        t0 = time.process_time()
        try:
            first = plain(made(card)); assert plain(made(card)) == first
        except Exception as e:
            print(card.kind, card.key, "BASE", type(e).__name__, str(e)[:100]); continue
        for field, setting in settings_of(card.config):
            value = getattr(card.config(**card.tiny), field.name)
            verdict, n, err = "untried", 0, ""
            for other in others(setting, value):
                try:
                    changed = plain(made(replace(card, tiny={**card.tiny, field.name: other})))
                except Exception as e:
                    err = f"{type(e).__name__} {str(e)[:80]}"
                    continue
                n += 1
                verdict = "same"
                if changed != first:
                    verdict = "ok"; break
            if verdict != "ok":
                print(card.kind, card.key, field.name, repr(value)[:40], verdict, n, err)
        print("  ", card.kind, card.key, round(time.process_time() - t0, 2), flush=True)
