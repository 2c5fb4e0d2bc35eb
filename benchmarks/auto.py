"""`intarsia auto` against fixed methods: docs/benchmarks/auto.md, of benchmarks/auto.jsonl.

    python benchmarks/auto.py --tasks elpv,emoji     # these of the fifteen, one after the other
    python benchmarks/auto.py                        # all that have no row yet
    python benchmarks/auto.py --data sounds-like/    # any other data, once
    python benchmarks/auto.py --page                 # the page, of the rows that are there

Each task of `mini` with the 100 training pictures of docs/benchmarks/even.md, at 56 px and in
bf16, for three minutes of one core: the clock of the search is the time of this process on a core,
so that a crowded machine gives the same search, only later. A search that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import torch

import intarsia
from intarsia.choosing import auto as autos
from intarsia.choosing import folded
from intarsia.experiments import one_run, pool
from intarsia.reports import numbers
from intarsia.reports.statistics import t_interval
from intarsia_lab.bench.report import records
from intarsia_lab.bench.report.records import Done
from intarsia_lab.materials import suites

ROOT = Path(__file__).parents[1]
ROWS, PAGE = ROOT / "benchmarks" / "auto.jsonl", ROOT / "docs" / "benchmarks" / "auto.md"
EVEN = ROOT / "benchmarks" / "even-mini.jsonl"
MINUTES, SEED, SIZE, IMAGES = 3.0, 20, 56, 100
WITHIN = 0.01  # of the best single method
DEFAULTS = ("linear", "lora", "adaptformer", "mosa", "bitfit")  # what one would fix without looking


def rows() -> dict[str, dict[str, Any]]:
    """Return the row of each task that has one."""
    if not ROWS.exists():
        return {}
    found = map(json.loads, ROWS.read_text().splitlines())
    return {row["data"]: row for row in found}


def on_the_core(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Train as the search does, with seconds of the core in place of those on the wall."""
    found = one_run.run(inputs)
    results = found["results"]
    share = results["cpu_seconds"] / max(results["seconds"], 1e-9)
    results["seconds_once"] = results.get("seconds_once", 0.0) * share
    results["seconds"] = results["cpu_seconds"]
    return found


def take_core_clock() -> None:
    """Let searches of this process go by its time on a core."""
    core = SimpleNamespace(perf_counter=time.process_time, monotonic=time.monotonic)
    autos.time = pool.time = core
    folded.one_run = autos.one_run = on_the_core


def search(data: str, out: Path, **options: Any) -> dict[str, Any]:
    """Return the row of one search."""
    start = time.perf_counter()
    resumed = (out / "auto.json").is_file()
    if resumed:
        found = intarsia.auto(out=out, resume=True)
    else:
        found = intarsia.auto(data, minutes=MINUTES, out=out, seed=SEED, **options)
    record = found.certainty.record()
    return {
        "data": data,
        "accuracy": found.test["accuracy"],
        "choice": found.certainty.choice,
        "candidates": record["candidates"],
        "pictures": record["pictures"],
        "differences": record["differences"][:1],
        "minutes": round((time.perf_counter() - start) / 60, 2),
        "core_minutes": round(found.seconds / 60, 2),
        "resumed": resumed,
        "code": one_run.source(),
    }


def carry(specs: Sequence[str], folder: Path, **options: Any) -> None:
    """Search each of the data that has no row."""
    for spec in specs:
        if spec in rows():
            continue
        row = search(spec, folder / spec.replace("/", "-"), **options)
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


def fixed(tasks: Sequence[str]) -> dict[str, list[float]]:
    """Return the accuracy of every method of even.md on these tasks at the seed of the search."""
    found: dict[str, dict[str, float]] = {}
    for result in records.read(EVEN):
        if result.seed == SEED and isinstance(result.outcome, Done):
            found.setdefault(result.method.name, {})[result.task.name] = result.outcome.accuracy
    return {
        name: [by_task[task] for task in tasks]
        for name, by_task in found.items()
        if all(task in by_task for task in tasks)
    }


def verdict(low: float, high: float, bar: float) -> str:
    """Return whether an interval lies above a bar."""
    return "holds" if low > bar else "fails" if high < bar else "not decided"


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page."""
    names = [task.name for task in suites.suite("mini").tasks]
    done = [name for name in names if f"mini/{name}" in found]
    lines = [ABOUT, "", *_table(found, done)] if done else [ABOUT, "", "Not run yet."]
    if done:
        lines += ["", *_verdicts(found, done, len(names))]
    others = [row for data, row in found.items() if not data.startswith("mini/")]
    if others:
        lines += ["", "## Data that nothing here was tuned on", ""]
        lines += [f"- {row['data']}: {_in_words(row)}" for row in others]
    return "\n".join(lines) + "\n"


def _table(found: Mapping[str, Mapping[str, Any]], done: Sequence[str]) -> list[str]:
    by_method = fixed(done)
    heads = ("Task", "auto", "Chosen", "Candidates", "Core", "linear", "lora", "Best in hindsight")
    lines = ["| " + " | ".join(heads) + " |"]
    lines.append("| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |")
    for place, task in enumerate(done):
        row = found[f"mini/{task}"]
        best = max(by_method, key=lambda name: by_method[name][place])
        older = "" if row.get("code") == one_run.source() else " (an earlier version)"
        cells = [
            task + older,
            numbers.percent(row["accuracy"]),
            row["choice"],
            str(row["candidates"]),
        ]
        cells += [f"{row['core_minutes']:.1f} min"]
        cells += [numbers.percent(by_method[name][place]) for name in ("linear", "lora")]
        cells += [f"{best} {numbers.percent(by_method[best][place])}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _verdicts(found: Mapping[str, Mapping[str, Any]], done: Sequence[str], of: int) -> list[str]:
    by_method = fixed(done)
    ours = [found[f"mini/{task}"]["accuracy"] for task in done]
    means = {name: fmean(values) for name, values in by_method.items()}
    best = max(means, key=lambda name: means[name])
    ahead = sum(mean > fmean(ours) for mean in means.values())
    lines = [
        f"Over {len(done)} of {of} tasks `auto` has a mean of {numbers.percent(fmean(ours))}; "
        f"{ahead} of {len(means)} methods of even.md are higher.",
        "",
        "| Against | Mean | auto minus it | 95 % interval over tasks | Target | Verdict |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for name in dict.fromkeys((best, *DEFAULTS)):
        gaps = [a - b for a, b in zip(ours, by_method[name], strict=True)]
        low, high = t_interval(gaps)
        bar = -WITHIN if name == best else 0.0
        target = "not 1 point behind" if name == best else "ahead"
        cells = [f"{name}, the best of all" if name == best else name]
        cells += [numbers.percent(means[name]), numbers.signed(100 * fmean(gaps))]
        ends = numbers.interval(low, high) if len(done) > 1 else "none of one task"
        cells += [ends, target, verdict(low, high, bar)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _in_words(row: Mapping[str, Any]) -> str:
    share, minutes = numbers.percent(row["accuracy"]), f"{row['core_minutes']:.1f}"
    text = f"{share} on its test part in {minutes} minutes of a core"
    return f"{text}, chosen among {row['candidates']} candidates: {row['choice']}."


ABOUT = """# How well `intarsia auto` chooses

For each task of `mini`, `intarsia auto` chooses with the 100 training pictures that every method of
[Every method, tuned alike](even.md) had: same model, pictures and test part, 56 px, bf16. It gets
three minutes of one core (its clock is the time on a core) and no other pictures; there, a method's
rate was chosen for all tasks on validation parts of three. The methods beside it are those of that
page at the same seed. The targets were fixed before the run: not more than one point behind the one
method that is best over all tasks in hindsight, and ahead of every method that one would fix
without looking.

    python benchmarks/auto.py            # the tasks that have no row yet, then:
    python benchmarks/auto.py --page

Core: minutes of one core that were used, the last fit included.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", help="of mini, with commas; all if not given")
    parser.add_argument("--data", help="other data in place of tasks")
    parser.add_argument("--out", type=Path, default=Path("runs/auto-mini"))
    parser.add_argument("--page", action="store_true", help="write the page, and run nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    take_core_clock()
    if args.page:
        PAGE.write_text(page(rows()))
        return
    if args.data:
        carry([args.data], args.out)
        return
    known = [task.name for task in suites.suite("mini").tasks]
    tasks = args.tasks.split(",") if args.tasks else known
    options = {"images": IMAGES, "size": SIZE, "precision": "bf16"}
    carry([f"mini/{task}" for task in tasks], args.out, **options)


if __name__ == "__main__":
    main()
