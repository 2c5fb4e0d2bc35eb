"""One cell: a contender, trained on one material from one seed, and told of.

All contenders of a seed have the same model but for their MLPs, and meet the same rows in the same
steps; rates, their schedule and the optimiser are one for all. A contender that begins as a dense
model learns in two trainings on one course of the rate, the second from a fresh optimiser with a
rate that rises over a fiftieth of the steps. The last step counts; nothing is chosen.
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
    """Steps of one cell: all of them, and the steps of this training, which begins at `first`."""

    steps: int
    first: int
    count: int

    def factor(self, step: int, _: int) -> float:
        """Return the factor of the learning rate at a step of this training.

        A cosine over all steps, with a short rise where a second training begins. step: counted
        from 0 in this training.
        """
        # a second training has a fresh optimiser, with moments of 0
        rise = max(1, round(AGAIN * self.steps)) if self.first else 1
        return cosine(WARMUP)(self.first + step, self.steps) * min(1.0, (step + 1) / rise)


@lru_cache(maxsize=2)
def _cached_material(data: str, scale: Scale) -> Material:
    return material(data, scale)


def work(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Train a model with one router and return all measures of the run.

    inputs: variant, data, seed, steps, scale, sees_later, version; ready for JSON, as the result.
    Raises: ConfigError for a router that sees later tokens of a text, unless acknowledged.
    """
    variant, scale = Variant.of(inputs["variant"]), Scale.of(inputs["scale"])
    material = _cached_material(inputs["data"], scale)
    seed, steps = int(inputs["seed"]), int(inputs["steps"])
    check_causal(variant, material.name, material.text, inputs["sees_later"])
    clock, cpu = time.perf_counter(), time.process_time()
    model = dense(variant, material, scale, seed)
    # steps as a dense model, before its MLP is copied to the experts
    alone = round(variant.start.dense_first * steps)
    watches: list[Watch] = []
    if alone:
        watches.append(_train(model, material, scale, seed, Course(steps, 0, alone), 0.0))
    # the experts begin from the dense model's MLPs where that is asked for
    with_mixtures(model, variant, seed, sees_later=inputs["sees_later"])
    course = Course(steps, alone, steps - alone)
    # operations add to the dense training's
    spent = watches[0].spent(alone)["total"] if alone else 0.0
    watches.append(_train(model, material, scale, seed, course, spent))
    trained = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}
    # everything that tables and figures need, as plain numbers
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
    """Train for the steps of a course; record loss and loads on the way."""
    # at these steps, a twentieth of all apart
    marks = [round(course.steps * i / POINTS) for i in range(1, POINTS)]
    watch = Watch(
        model, material.val, batch=scale.batch, marks=marks, first=course.first, spent=spent
    )
    rows = stream(material.train, course.first, course.count, scale.batch, seed)
    with watch.watching(), warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # the result says so
        _run(model, rows, scale, seed, course, watch)
        # the last point, after the last step
        watch.note(course.count)
    return watch


def _run(model: nn.Module, rows: Any, scale: Scale, seed: int, course: Course, watch: Watch) -> Run:
    """Train a model once over the rows, with AdamW."""
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
    """Count a model's parameters: in all, in routers, in the experts' matrices."""
    experts = sum(matrices(m.experts) for m in mixtures(model).values())
    # routers may share parameters: each counts once
    routers = {id(p): p.numel() for r in learned_routers(model).values() for p in r.parameters()}
    total = sum(p.numel() for p in model.parameters())
    return {"total": total, "routers": sum(routers.values()), "experts": experts}


def _flops(watches: Sequence[Watch], steps: Sequence[int]) -> dict[str, float]:
    # of the dense training and of that with mixtures
    parts = [watch.spent(count) for watch, count in zip(watches, steps, strict=True)]
    return {name: sum(part[name] for part in parts) for name in parts[0]}
