"""One cell: a contender, trained on one material from one seed, and told of.

All contenders of a seed have the same model but for their MLPs, and meet the same rows in the same
steps; rates, their schedule and the optimiser are one for all. A contender that begins as a dense
model learns in two trainings on one course of the rate, the second from a fresh optimiser whose
rate rises over a fiftieth of the steps. The last step counts; nothing is chosen.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from intarsia.fitting import fit
from intarsia.gating import learned_routers
from intarsia.gating.load import CollapseWarning
from intarsia.train import Run, cosine

from .build import check_causal, dense, with_mixtures
from .cost import matrices, mixtures
from .materials import Material, material, stream
from .observe import observed
from .scale import Scale
from .variant import Variant
from .watch import Watch

VERSION = 1
"""To be raised with anything that changes what a cell gives."""

POINTS, WARMUP, AGAIN = 20, 0.05, 0.02
WEIGHT_DECAY, CLIP = 0.01, 1.0


@dataclass(frozen=True)
class Course:
    """Steps of one cell: all of them, and those of this training, which begins at `first`."""

    steps: int
    first: int
    count: int

    def factor(self, step: int, _: int) -> float:
        """Return the rate's factor: a cosine over all steps, a short rise where it restarts."""
        rise = max(1, round(AGAIN * self.steps)) if self.first else 1
        return cosine(WARMUP)(self.first + step, self.steps) * min(1.0, (step + 1) / rise)


@lru_cache(maxsize=2)
def _held(data: str, scale: Scale) -> Material:
    return material(data, scale)


def work(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Train and tell.

    inputs: variant, data, seed, steps, scale, sees_later, version; ready for JSON, as the result.
    Raises: ConfigError for a contender that sees later tokens of a text, unless acknowledged.
    """
    variant, scale = Variant.of(inputs["variant"]), Scale.of(inputs["scale"])
    material, seed, steps = _held(inputs["data"], scale), int(inputs["seed"]), int(inputs["steps"])
    check_causal(variant, material.name, material.text, inputs["sees_later"])
    clock, cpu = time.perf_counter(), time.process_time()
    model = dense(variant, material, scale, seed)
    alone = round(variant.start.dense_first * steps)
    watches: list[Watch] = []
    if alone:
        watches.append(_train(model, material, scale, seed, Course(steps, 0, alone), 0.0))
    with_mixtures(model, variant, seed, sees_later=inputs["sees_later"])
    course = Course(steps, alone, steps - alone)
    spent = watches[0].spent(alone)["total"] if alone else 0.0
    watches.append(_train(model, material, scale, seed, course, spent))
    trained = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}
    return {
        "steps": steps,
        "dense_steps": alone,
        "classes": list(material.classes),
        "parameters": parameters(model),
        "flops": _flops(watches, (alone, steps - alone) if alone else (steps,)),
        "router_time": watches[-1].router_share,
        "curve": [point for watch in watches for point in watch.points],
        **observed(model, material, scale.batch),
        **trained,
    }


def _train(
    model: nn.Module, material: Material, scale: Scale, seed: int, course: Course, spent: float
) -> Watch:
    """Train for the steps of a course; loss and loads are recorded on the way.

    material: the data; scale: batch, rate and steps; course: the rate's schedule; spent: operations
    before this training.
    """
    marks = [round(course.steps * i / POINTS) for i in range(1, POINTS)]
    watch = Watch(
        model, material.val, batch=scale.batch, marks=marks, first=course.first, spent=spent
    )
    rows = stream(material.train, course.first, course.count, scale.batch, seed)
    with watch.watching(), warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # the result says so
        _run(model, rows, scale, seed, course, watch)
        watch.note(course.count)
    return watch


def _run(model: nn.Module, rows: Any, scale: Scale, seed: int, course: Course, watch: Watch) -> Run:
    """Train a model once through the rows.

    rows: training and validation parts; scale: batch and rate; course: the rate's schedule; watch:
    records loss and loads before steps.
    """
    return fit(
        model,
        rows,
        epochs=1,
        batch_size=scale.batch,
        lr=scale.lr,
        weight_decay=WEIGHT_DECAY,
        clip=CLIP,
        seed=seed,
        lr_factor=course.factor,
        schedule=watch,
        trackers=(),
    )


def parameters(model: nn.Module) -> dict[str, int]:
    """Count the parameters: in all, in routers, in experts."""
    experts = sum(matrices(m.experts) for m in mixtures(model).values())
    routers = {id(p): p.numel() for r in learned_routers(model).values() for p in r.parameters()}
    total = sum(p.numel() for p in model.parameters())
    return {"total": total, "routers": sum(routers.values()), "experts": experts}


def _flops(watches: Sequence[Watch], steps: Sequence[int]) -> dict[str, float]:
    parts = [watch.spent(count) for watch, count in zip(watches, steps, strict=True)]
    return {name: sum(part[name] for part in parts) for name in parts[0]}
