"""docs/benchmarks/rates.md: `intarsia compare` with one rate for all, and with a search for each.

    python benchmarks/rates.py mini/elpv fresh/twemoji   # these tasks, both ways, into rates.jsonl
    python benchmarks/rates.py all                       # the fifteen of mini and the six of fresh
    python benchmarks/rates.py --write                   # the page, of the tasks that are there

A task that is there is not run again, and one that was stopped resumes. About two CPU minutes a
task on one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from intarsia.core.store import Store, key_of
from intarsia.reports.markdown import markdown
from intarsia.reports.table import Column, Entry, Table
from intarsia_lab.materials import suites

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "rates.jsonl"
PAGE = ROOT / "docs" / "benchmarks" / "rates.md"
SUITES = ("mini", "fresh")
SEEDS = (31,)
FIXED = 1e-3  # what every method had before there was a search
TARGET = 0.5  # points that a method may lose in the mean by the search
WAYS = {"fixed": ("--lr", str(FIXED)), "searched": ()}
SETTINGS = (
    *("-n", "100", "--size", "56", "--last-blocks", "3", "--frozen-once", "--precision", "bf16"),
    *("--epochs", "40", "--weight-decay", "0.01", "--threads", "1"),
    *("--methods", "linear,lora,bottleneck,mosa"),
)
ABOUT = f"""# A rate for each method

`intarsia compare` gave every method the learning rate {FIXED:g}; now it finds one for each on
validation pictures. Both ways, with the same seeds: 100 training images, 40 epochs, 56 px, the last
three of twelve blocks. Accuracy on test parts, which the search does not look at. The target was
written before the runs: in the mean over tasks no method loses more than {TARGET:g} points by the
search.

    python benchmarks/rates.py all
    python benchmarks/rates.py --write
"""


def tasks() -> list[str]:
    """Return the tasks of both suites, as `intarsia compare` takes them."""
    return [f"{name}/{task.name}" for name in SUITES for task in suites.suite(name).tasks]


def run(task: str, out: Path, kept: Store) -> None:
    """Compare the methods on a task, both ways, and keep the rows."""
    for way, words in WAYS.items():
        key = key_of({"task": task, "way": way})
        if key in kept:
            continue
        command = [sys.executable, "-m", "intarsia", "compare", task, *SETTINGS, *words]
        command += ["--seeds", ",".join(map(str, SEEDS)), "--out", str(out / way / task), "--json"]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows = {row["method"]: _row(row) for row in json.loads(found.stdout)["rows"]}
        kept.add(key, {"task": task, "way": way, "seeds": list(SEEDS), "rows": rows})


def _row(row: dict[str, Any]) -> dict[str, Any]:
    tried = (row["search"] or {}).get("rates", [])
    return {"accuracy": row["accuracy"]["mean"], "lr": row["lr"], "tried": tried}


def page(kept: Store) -> str:
    """Return the page of all tasks that are there both ways."""
    by_task: dict[str, dict[str, dict[str, Any]]] = {}
    for row in kept.rows.values():
        by_task.setdefault(row["task"], {})[row["way"]] = row["rows"]
    both = {task: by_task[task] for task in tasks() if by_task.get(task, {}).keys() == WAYS.keys()}
    if not both:
        return f"{ABOUT}\nNot run yet.\n"
    parts = [ABOUT, markdown(_means(both)), markdown(_each(both))]
    if left := [task for task in tasks() if task not in both]:
        parts.append(f"Not run yet: {', '.join(left)}.\n")
    return "\n".join(parts)


def _gain(ways: dict[str, dict[str, Any]], method: str) -> float:
    return 100 * (ways["searched"][method]["accuracy"] - ways["fixed"][method]["accuracy"])


def _means(both: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """A row for each method: means over tasks, the worst and the best task, the verdict."""
    methods = list(next(iter(both.values()))["fixed"])
    rows: list[tuple[Entry, ...]] = []
    for method in methods:
        gains = [_gain(ways, method) for ways in both.values()]
        fixed, searched = (
            100 * fmean(ways[way][method]["accuracy"] for ways in both.values()) for way in WAYS
        )
        cells = [method, f"{fixed:.1f}", f"{searched:.1f}", f"{fmean(gains):+.2f}"]
        cells += [f"{min(gains):+.1f}", f"{max(gains):+.1f}"]
        verdict = "met" if fmean(gains) >= -TARGET else "missed"
        cells += [verdict if len(both) == len(tasks()) else "not decided"]
        rows.append(tuple(map(Entry, cells)))
    titles = ("Method", f"Rate {FIXED:g}", "Own rate", "Gain", "Worst task", "Best task", "Target")
    columns = tuple(Column(t, "", numeric=t not in ("Method", "Target")) for t in titles)
    caption = (
        f"Means over {len(both)} tasks and {len(SEEDS)} seeds, accuracy in %, gains in points."
    )
    return Table(caption, columns, tuple(rows), best=None, baseline=None)


def _each(both: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """A row for each task: of each method the gain and the rate that was found."""
    methods = list(next(iter(both.values()))["fixed"])
    rows = [
        (
            Entry(task),
            *(Entry(f"{_gain(ways, m):+.1f}", f"{ways['searched'][m]['lr']:g}") for m in methods),
            Entry(str(len(ways["searched"][methods[0]]["tried"]))),
        )
        for task, ways in both.items()
    ]
    columns = (
        Column("Task", "", numeric=False),
        *(Column(method, "") for method in methods),
        Column("Rates tried", ""),
    )
    caption = "Gain by the search in points, and the rate that was found in brackets."
    return Table(caption, columns, tuple(rows), best=None, baseline=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("runs/rates"))
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    kept = Store(ROWS.parent, ROWS.name)
    for task in tasks() if asked.tasks == ["all"] else asked.tasks:
        run(task, asked.out, kept)
    if asked.write:
        PAGE.write_text(page(kept))
    else:
        print(page(kept))


if __name__ == "__main__":
    main()
