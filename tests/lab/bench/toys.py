"""A small benchmark whose runs are arithmetic, for the runner's tests."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from intarsia.core.errors import TrainingError
from intarsia.runs.choosing.arms import arm
from intarsia.runs.experiment import Experiment, Pictures
from intarsia_lab.bench.plan import BenchPlan
from intarsia_lab.bench.protocols import protocol
from intarsia_lab.bench.run import How, run_plan
from intarsia_lab.materials.suites import Suite, SuiteTask


def task(name: str, group: str = "natural") -> SuiteTask:
    counts = {"train": 800, "val": 200, "test": 1000}
    return SuiteTask(name, group, 4, counts, read=lambda _: {})


TOYS = Suite("toys", "arithmetic", (task("one"), task("two"), task("three", "structured")))


def plan(rules: str = "honest", **changes: Any) -> BenchPlan:
    toy_plan = BenchPlan(
        TOYS, TOYS.tasks, tuple(map(arm, ("linear", "adaptformer", "mosa"))), (0, 1),
        protocol(rules), Experiment(Pictures("")).changed(epochs=20),
    )  # fmt: skip
    return replace(toy_plan, **changes)


def work(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy as a pure function of the experiment; says in its folder how often it ran."""
    folder, flat = Path(inputs["folder"]), inputs["experiment"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "ran").open("a") as file:
        file.write("x")
    if (folder.parent / "slow").exists():
        time.sleep(0.02)
    if (folder.parent / "bad").exists() and flat["method"] == "mosa":
        raise TrainingError("loss at step 3", got="nan", want="a number", fix="Lower lr.")
    if (folder.parent / "deadly").exists() and flat["method"] == "bottleneck":
        os.kill(os.getpid(), signal.SIGKILL)
    tested = inputs.get("test", flat["val"] is not None)
    digest = hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).digest()
    scores = {"accuracy": digest[0] / 255, "balanced_accuracy": digest[1] / 255, "loss": 1.0}
    return {
        "results": {
            "test" if tested else "val": scores,
            "seconds": 0.5, "cpu_seconds": 0.5, "peak_bytes": {"resident": 1000, "grown": 400},
        },
        "parameters": {"all": 100, "trained": 12, "trained_without_head": 2},
        "origin": {"code": "c", "pictures": "p", "twins": 0, "chosen": {}},
    }  # fmt: skip


if __name__ == "__main__":
    run_plan(plan(sys.argv[2]), Path(sys.argv[1]), How(executor="here"), work=work)
