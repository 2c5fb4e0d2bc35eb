"""A real plan that is small, and what must be the same of it however often its runner is killed.

Started by test_kill.py as a program: carries the plan out in a folder.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from intarsia.runs import one_run
from intarsia.runs.choosing.arms import arm
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.train import Running
from intarsia_lab.bench.plan import BenchPlan
from intarsia_lab.bench.protocols import protocol
from intarsia_lab.bench.report.records import RunResult
from intarsia_lab.bench.run import How, run_plan
from intarsia_lab.materials.suites import suite

METHODS = ("linear", "adaptformer", "mosa")
COSTS = ("seconds", "cpu_seconds", "peak_bytes", "search_seconds")


def plan(epochs: int) -> BenchPlan:
    """Three methods, two seeds: a random ViT on rendered pictures."""
    mini = suite("mini")
    start = Experiment(Pictures("", images=0.4, test=64)).changed(
        model="test_vit", size=32, pretrained=False, epochs=epochs, last_blocks=2, frozen_once=True
    )
    return BenchPlan(
        mini, (mini.task("synthetic-location"),), tuple(map(arm, METHODS)), (0, 1),
        protocol("honest"), start,
    )  # fmt: skip


def lasting(result: RunResult) -> dict[str, Any]:
    """A result but for what it cost, flat."""
    values = dataclasses.asdict(result)
    values |= {f"{group}.{name}": value for group in ("outcome", "setup")
             for name, value in values.pop(group).items()}  # fmt: skip
    return {name: value for name, value in values.items() if name.split(".")[-1] not in COSTS}


def remains(folder: Path) -> dict[str, Any]:
    """Read a run's folder but for times: its weights, its answers, its curve."""
    files = [*folder.glob("adapter/*.safetensors"), folder / "predictions.safetensors"]
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [{n: v for n, v in line.items() if n != "seconds"} for line in lines]
    return {file.name: file.read_bytes() for file in files} | {"curve": curve}


def often(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The runner's own work, with a checkpoint at every third step in place of 30 seconds."""
    one_run.Running = partial(Running, checkpoint_steps=3)  # pyright: ignore
    return one_run.run(inputs)


if __name__ == "__main__":
    how = How(jobs=2, threads=1)
    run_plan(plan(int(sys.argv[2])), Path(sys.argv[1]), how, print, often)
