"""Files of the laboratory: results and plans of its benchmark, and lists of published splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from intarsia.core.files import write_json
from intarsia.core.store import Store
from intarsia_lab.bench import folder as bench_folder
from intarsia_lab.bench.report import records
from intarsia_lab.materials.suites import lists

from .kinds import Kind


def _results(folder: Path) -> None:
    done = records.Done(
        accuracy=0.8, balanced_accuracy=0.8, loss=0.5, trained=110, trained_without_head=100,
        seconds=2.0, cpu_seconds=4.0, peak_bytes=10**9, own_task_accuracy=None,
    )  # fmt: skip
    for seed in range(3):
        result = records.RunResult(
            key=f"mini-mosa-{seed}",
            task=records.TaskName("mini", "natural", "mnist", False),
            method=records.MethodName("mosa", "MoSA"),
            seed=seed,
            setup=records.Setup("honest", "vit-s", 3),
            outcome=done,
            folder="runs/0",
        )
        records.append(folder / "results.jsonl", result)
    store = Store(folder, "store.jsonl")
    store.add("a", {"loss": 1.5})


def _open_results(folder: Path) -> Any:
    return records.read(folder / "results.jsonl"), Store(folder, "store.jsonl").rows


def _lists(folder: Path) -> None:
    (folder / "train.txt").write_text("a/1.png 0\nb/2.png 1\n")
    (folder / "train.json").write_text(json.dumps({"a/1.png": 0, "b/2.png": 1}))


def _open_lists(folder: Path) -> Any:
    return lists.read_lines(folder / "train.txt"), lists.read_json(folder / "train.json")


def _plan(folder: Path) -> None:
    write_json(folder / "plan.json", {"format": bench_folder.FORMAT, "suite": "mini"})


def _open_plan(folder: Path) -> Any:
    protocol = {"suite": "mini"}
    return bench_folder._check(folder / "plan.json", protocol)  # pyright: ignore[reportPrivateUsage]


KINDS = (
    Kind("results", _results, _open_results),
    Kind("lists", _lists, _open_lists),
    Kind("plan", _plan, _open_plan),
)
