"""The laws of each kind of card, and what its config must offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..core import Card, registry
from ..partitions.sparsifier import Sparsifier
from ..schedules import LayerSchedule, SparseSchedule
from . import (
    adapters,
    caches,
    changes,
    formats,
    layer_schedules,
    mixtures,
    models,
    objectives,
    parallels,
    partitions,
    placements,
    routers,
    schedules,
    scores,
    sparse_schedules,
    sparsifiers,
    trainings,
    unlearnings,
)
from .verdict import Checks, Law, checks


def adapter_laws(card: Card) -> tuple[Law, ...]:
    """Return an adapter's laws, with a change's laws for one that PEFT can hold."""
    return adapters.LAWS + (changes.CHANGE_LAWS if card.key in registry.index() else ())


def change_laws(card: Card) -> tuple[Law, ...]:
    """Return a change's laws; a `Sparsifier` also gets its own."""
    is_sparsifier = isinstance(card.config(**card.tiny), Sparsifier)
    return changes.LAWS + (sparsifiers.SPARSIFIER_LAWS if is_sparsifier else ())


def schedule_laws(card: Card) -> tuple[Law, ...]:
    """Return a schedule's laws: a `LayerSchedule`'s, a `SparseSchedule`'s or a function's."""
    schedule = card.config(**card.tiny)
    if isinstance(schedule, LayerSchedule):
        return layer_schedules.LAWS
    return sparse_schedules.LAWS if isinstance(schedule, SparseSchedule) else schedules.LAWS


SUITES: Mapping[str, Callable[[Card], tuple[Law, ...]]] = MappingProxyType(
    {
        "adapter": adapter_laws,  # a `Method`, which builds a `Cell` at a site
        "baseline": lambda _: changes.LAWS,
        "cache": lambda _: caches.LAWS,  # `build(layers, experts) -> Policy`
        "change": change_laws,
        "format": lambda _: formats.LAWS,  # a `Format`
        "mixture": mixtures.laws,  # `step(f, x, m)`, or `build(width, hidden, generator=...)`
        "model": lambda _: models.LAWS,  # an estimator of scikit-learn that is a dataclass
        "objective": lambda _: objectives.LAWS,  # `teacher`, `(model, x, loss_of) -> Outcome`
        "parallel": lambda _: parallels.LAWS,  # a `parallel.Strategy`
        "partition": lambda _: partitions.LAWS,  # `density`, `build(scores, generator=...)`
        "placement": lambda _: placements.LAWS,  # `place(trace, topology) -> Placement`
        "recipe": lambda _: changes.LAWS,
        "router": lambda _: routers.LAWS,  # `build(width, generator=...)`: x (T, d) -> Routing
        "schedule": schedule_laws,
        "training": lambda _: trainings.LAWS,  # `density`, `phases(model, seed=...)`
        "unlearning": lambda _: unlearnings.LAWS,  # `unlearn(model, forget, retain, at=..., ...)`
        "score": lambda _: scores.LAWS,  # `score(weight, statistics)`, of the weight's shape
    }
)


def check(card: Card) -> Checks:
    """Return a check for each law that a method's kind has to obey.

    A check is called without arguments; it raises ConformanceError if the method breaks the law,
    and returns the reason for a declared exception, see `Card.exceptions`.
    """
    return checks(card, SUITES[card.kind](card))
