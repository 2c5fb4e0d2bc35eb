"""Cells of `intarsia bench mini` an hour: runs that step together, next to each run on its own.

    python benchmarks/throughput.py                # the table on the terminal
    python benchmarks/throughput.py --write        # and into docs/benchmarks/throughput.md
    python benchmarks/throughput.py --arms lora --epochs 1 --reps 1    # a smoke test

A cell is a whole run of the profile `full`, from its settings to its folder: one task, one method,
one seed. The seeds of a method are carried out in one piece, as the benchmark does it, and one by
one with all of the model in every step (`How(alone=True)`). Both stand in one process, one after
the other, in an order that turns round, so that a machine with a load that changes slows both down;
the pictures, and the tokens that enter the first trained block, are there for both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from frame import markdown, parser, publish, read

from intarsia.runs.choosing.arms import arm
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.runs.one_run import run
from intarsia.runs.shared import Spent
from intarsia_lab.bench.plan import BenchPlan
from intarsia_lab.bench.profiles import FULL
from intarsia_lab.bench.protocols import HONEST
from intarsia_lab.materials import suites

ARMS = ("adaptformer", "pfeiffer", "houlsby", "adapter+", "lora", "mosa", "mosa-64", "mosl")
TASKS = ("mnist", "elpv")
TARGET = 2.2


def inputs(args: argparse.Namespace, task: str, name: str, out: Path) -> list[dict[str, Any]]:
    """What the cells of a method and a task are carried out from."""
    mini = suites.suite("mini")
    (found,) = (t for t in mini.tasks if t.name == task)
    size = {"epochs": args.epochs, "images": args.images}
    start = Experiment(Pictures("")).changed(**{**FULL.values, **size})
    seeds = tuple(range(args.seeds))
    plan = BenchPlan(mini, (found,), (arm(name),), seeds, HONEST, start)
    return [
        {
            "experiment": plan.final(place).flat(),
            "folder": str(out / f"{task}-{name}-{place.seed}"),
            "shared": str(Path(args.shared).absolute()),
        }
        for place in plan.places()
    ]


def carried(args: argparse.Namespace, task: str, name: str, *, alone: bool) -> tuple[Spent, float]:
    """The time of the cells of a method and a task, and the highest memory of one piece in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        cells = inputs(args, task, name, Path(folder))
        start = Spent.now()
        if alone:
            ends = [run({**cell, "whole": True}) for cell in cells]
        else:
            found = run({"stack": cells})["ends"]
            errors = [end["error"] for end in found if end["error"]]
            if errors:
                raise SystemExit(errors[0])
            ends = [end["result"] for end in found]
        spent = Spent.now().since(start)
    return spent, max(end["results"]["peak_bytes"]["grown"] for end in ends) / 2**20


def measure(args: argparse.Namespace) -> list[list[str]]:
    """A row for each method, and one for all."""
    rows: list[list[str]] = []
    total = {True: Spent(), False: Spent()}
    cells = len(args.tasks) * args.seeds * args.reps
    for name in args.arms:
        own = {True: Spent(), False: Spent()}
        peak = {True: 0.0, False: 0.0}
        for number, task in enumerate(args.tasks * args.reps):
            for alone in (True, False) if number % 2 else (False, True):
                spent, memory = carried(args, task, name, alone=alone)
                own[alone] = own[alone].plus(spent)
                total[alone] = total[alone].plus(spent)
                peak[alone] = max(peak[alone], memory)
        rows.append(row(name, own, cells, [f"{peak[a]:.0f} MiB" for a in (True, False)]))
        print("  ".join(rows[-1]), time.strftime("%H:%M:%S"), flush=True)
    rows.append(row("all", total, cells * len(args.arms), ["", ""]))
    return rows


def row(name: str, spent: dict[bool, Spent], cells: int, peaks: list[str]) -> list[str]:
    """Cells an hour alone and together, their ratio by the clock and by CPU time, and memory."""
    hour = [3600 * cells / spent[alone].seconds for alone in (True, False)]
    each = [spent[alone].cpu_seconds / cells for alone in (True, False)]
    return [
        name,
        *(f"{count:.0f}" for count in hour),
        f"{hour[1] / hour[0]:.2f}",
        *(f"{seconds:.1f} s" for seconds in each),
        f"{each[0] / each[1]:.2f}",
        *peaks,
    ]


HEAD = ["method", "alone, an hour", "together", "ratio", "CPU alone", "together", "ratio"]


def main() -> None:
    made = parser(__doc__, threads=1, reps=1)
    made.add_argument("--arms", nargs="+", default=[*ARMS])
    made.add_argument("--tasks", nargs="+", default=[*TASKS])
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--epochs", type=int, default=FULL.values["epochs"])
    made.add_argument("--images", type=int, help="of a task; all if not given")
    made.add_argument("--shared", default="runs/throughput", help="folder of pictures and tokens")
    args = read(made)
    torch.set_num_threads(args.threads)
    for task in args.tasks:  # what cells have in common is made before
        first, *_ = inputs(args, task, "adaptformer", Path(tempfile.gettempdir()))
        with tempfile.TemporaryDirectory() as folder:
            short = {**first["experiment"], "epochs": 1}
            run({**first, "experiment": short, "folder": folder + "/run"})
    table = measure(args)
    got = float(table[-1][3])
    body = [
        *markdown([*HEAD, "peak alone", "peak together"], table),
        "",
        f"{args.seeds} seeds together, {args.images or 1000} images x {args.epochs} epochs, tasks "
        f"{', '.join(args.tasks)}. Peak: "
        "what a piece adds in training to the loaded model and pictures; together, of all seeds. "
        f"Target: {TARGET} times as many runs an hour over all: "
        f"{'met' if got >= TARGET else 'not met'}.",
    ]
    about = "Runs of a method at several seeds that step together, next to each run on its own."
    publish("Cells of a benchmark an hour", about, body, args)


if __name__ == "__main__":
    main()
