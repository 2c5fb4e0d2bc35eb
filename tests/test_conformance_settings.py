"""Every setting decides something: with another value a method builds or computes another thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from intarsia.catalog import cards
from intarsia.conformance import batches, caches, cells, mixtures, objectives, placements
from intarsia.conformance.made import normal, seeded, torch_seed
from intarsia.conformance.routers import after_a_layer as routers_after
from intarsia.conformance.sparse_schedules import STEPS, MaskedRun
from intarsia.conformance.sparse_schedules import net as masked_net
from intarsia.conformance.verdict import Broken
from intarsia.core import Card
from intarsia.core.errors import IntarsiaError
from intarsia.core.schema import Setting, settings_of, words
from intarsia.gating import aux_loss, before_step, watch
from intarsia.placement.cache import replay
from intarsia.placement.topology import Topology
from intarsia.schedules import SparseSchedule

Results = list[Any]
WIDTH, ROWS = 6, 24


def of_adapter(card: Card) -> Results:
    """Return which layers get a cell, its first weights, and outputs in training and evaluation."""
    settings: Any = card.config(**card.tiny)
    start, later = cells.build(card), cells.trained(card)
    x = cells.inputs(card, ROWS)
    outputs = [*(later.train()(x) for _ in range(4)), later.eval()(x)]
    return [settings.roles, settings.position, *start.state_dict().values(), *outputs]


def of_router(card: Card) -> Results:
    """First weights, and the routings of a training and of evaluation, behind another layer."""
    router = batches.build(card)
    results: Results = [*router.state_dict().values()]
    with torch.no_grad():
        for parameter in router.parameters():  # gates may start at 0
            parameter.add_(normal(*parameter.shape, seed=3))
    for step in range(4):
        before_step(router, step, 4)
        for training in (True, False):
            routing = routers_after(router.train(training), normal(ROWS, WIDTH, seed=step))
            results += [routing.dense(), *routing.losses.values()]
    return results


def of_mixture(card: Card) -> Results:
    """First weights, outputs in training and evaluation where experts are full, and the loss."""
    settings: Any = card.config(**card.tiny)
    if not hasattr(settings, "build"):
        return mixtures.Stream(settings)(normal(ROWS, WIDTH).double())
    model = nn.Sequential(settings.build(WIDTH, 7, generator=seeded()))
    results: Results = [*model.state_dict().values()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(normal(*parameter.shape, seed=3))
    watch(model)
    for training in (True, False):
        results += [model.train(training)(normal(4 * ROWS, WIDTH)), aux_loss(model)]
    return results


def of_cache(card: Card) -> Results:
    config: Any = card.config(**card.tiny)
    sizes = caches.LAYERS, caches.EXPERTS
    return [
        replay(caches.asked(i), config.build(*sizes), slots) for i in range(4) for slots in (5, 9)
    ]


def of_placement(card: Card) -> Results:
    config: Any = card.config(**card.tiny)
    placed = [config.place(placements.routed(seed), Topology.two_level(2, 2)) for seed in range(4)]
    return [tensor for placement in placed for tensor in (placement.owner, placement.holds)]


def of_schedule(card: Card) -> Results:
    """Weights after each step of a training, and what the optimiser stores."""
    run = MaskedRun(card.config(**card.tiny), masked_net())
    results: Results = []
    for step in range(STEPS):
        run.step(step)
        results += [p.detach().clone() for p in run.model.parameters()]
    return [*results, type(run.optimizer).__name__, run.masking.masked.entries is None]


def of_objective(card: Card) -> Results:
    outcome = objectives.outcome(card, objectives.net(0), objectives.net(1))
    return [outcome.loss, *outcome.parts.values()]


MADE: Mapping[str, Callable[[Card], Results]] = {
    "adapter": of_adapter,
    "router": of_router,
    "mixture": of_mixture,
    "cache": of_cache,
    "placement": of_placement,
    "schedule": of_schedule,
    "objective": of_objective,
}


def laid_out(results: Results) -> list[Any]:
    """Numbers as bytes, so that two lists are equal where all bits are."""
    values = [v.detach().cpu() if isinstance(v, Tensor) else v for v in results]
    return [(v.shape, v.numpy().tobytes()) if isinstance(v, Tensor) else v for v in values]


def others(declared: Setting, value: Any) -> Iterator[Any]:
    """Other values that the setting might have; not all of them need be valid."""
    if choices := words(declared.choices):
        yield from (word for word in choices if word != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, 2 * value, value - 1, value // 2)
    elif isinstance(value, float):
        yield from (value / 2, 2 * value, value + 0.3, 0.5 * (1 + value), value + 1)
    elif value is None:
        yield from (2, 1, 3, 0.3, 0.7, 1.5)
    elif isinstance(value, tuple) and all(isinstance(v, int | float) for v in value):
        yield from (tuple(factor * v for v in value) for factor in (2, 0.5))


def idle(card: Card) -> set[str]:
    """Names of settings that other values were found for, none of which changes anything."""

    def results(tiny: Mapping[str, Any]) -> list[Any]:
        with torch_seed(0):  # jitter is drawn as dropout is
            return laid_out(MADE[card.kind](replace(card, tiny=tiny)))

    tiny = {**card.tiny, **TINY.get(card.key, {})}
    first = results(tiny)
    assert results(tiny) == first
    without = set[str]()
    for field, declared in settings_of(cast(type, card.config)):
        value, tried = getattr(card.config(**tiny), field.name), []
        for another in others(declared, value):
            try:
                tried.append(results({**tiny, field.name: another}) != first)
            except (IntarsiaError, Broken):
                continue  # a value that the method refuses
            if tried[-1]:
                break
        if tried and not any(tried):
            without.add(field.name)
    return without


# settings under which more of the others decide something
TINY: Mapping[str, Mapping[str, Any]] = {
    "deepspeed_moe": {"least": 26},
    "lfu": {"every": 3},
    "squarehead": {"kl": 0.5},
    "transport": {"capacity": 2.0},
    "zcode_m3": {"least": 26},
}
PHASES = "what a training in phases does"
LIMIT = "an upper limit, which so few experts do not reach"
# what a setting decides that none of these small cases has
ELSEWHERE: Mapping[str, Mapping[str, str]] = {
    "eplb": {"redundant": "copies, of which these devices have no place for one more"},
    "exflow": {"sweeps": LIMIT},
    "expertflow": {"likely": "which experts are read ahead, where a predictor says so"},
    "joint_swaps": {"sweeps": LIMIT},
    "llava_mole": {"balance": "a loss of an adapted model"},
    "lt_sft": dict.fromkeys(
        ("count", "density", "first", "head", "iterations", "pull", "support"), PHASES
    ),
    "moetuner": {"sweeps": LIMIT, "gap": LIMIT, "nodes": LIMIT},
    "mosa": {"decay": "what an optimiser of split weights does"},
    "pace": dict.fromkeys(("every", "one_pass", "weight"), "an objective, not the cell"),
    "poly": {"unknown": "what a task without a number has"},
    "s2ft": dict.fromkeys(("channels", "order", "selection", "up"), "channels of a whole model"),
    "sparse": {"entries": "numbers of entries by layer, which are text"},
    "squarehead": {"teacher": "a model"},
    "task": {"unknown": "what a task without a number has"},
    "uni_moe": {"balance": "a loss of an adapted model", "shares": PHASES},
}


def cases() -> list[Card]:
    return [
        card
        for card in cards()
        if card.kind in MADE
        and (card.kind != "schedule" or isinstance(card.config(**card.tiny), SparseSchedule))
    ]


def marked(card: Card) -> Any:
    slow = [pytest.mark.thorough] if card.kind == "schedule" or card.key == "moetuner" else []
    return pytest.param(card, id=card.key, marks=slow)


@pytest.mark.parametrize("card", [marked(card) for card in cases()])
def test_every_setting_decides_something(card: Card) -> None:
    assert idle(card) == ELSEWHERE.get(card.key, {}).keys()
