"""MoSA against its own adapter, and its peers, by a protocol that was fixed before the run.

    python benchmarks/mosa_pairs.py rates                       # a rate for each method and budget
    python benchmarks/mosa_pairs.py confirm                     # the pairs, once
    python benchmarks/mosa_pairs.py page --write                # docs/benchmarks/mosa_pairs.md
    ... --budgets scarce --methods mosa adaptformer             # a part of it

`mosa_pairs.json` is the protocol: sets, seeds, sizes, budgets; `mosa_pairs.jsonl` has a row for
each finished run. One that is stopped resumes from `--out`, where another protocol is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frame import markdown, parser, publish, read

from intarsia.core.locks import alone
from intarsia.core.store import Store, key_of
from intarsia.reports.sheet import Differences, Sheet, Spread
from intarsia.runs.choosing.arms import arm
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.runs.one_run import run as one_run
from intarsia.runs.one_run import shape_of
from intarsia.runs.pool import MOST, Trial, TrialEnd, run_told
from intarsia_lab.materials.suites import JOINED

FILE = Path(__file__).with_suffix(".json")
NOTES = (
    "`photo-blur` is at the level of chance at 56 px (five classes): it adds noise to both sides. "
    "The three tasks of photographs, and the two of prompts, share their pictures, so that six "
    "tasks are no six independent sets; the bootstrap over tasks is the wider interval for that."
)
SCORES = ("accuracy", "balanced_accuracy", "loss", "tempered_loss", "ece")
Row = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A run: its stage, budget, method, rate, task and seed."""

    stage: str
    budget: str
    method: str
    rate: float
    task: str
    seed: int

    def __str__(self) -> str:
        return f"{self.budget}, {self.task}, {self.method}, rate {self.rate:g}, seed {self.seed}"


def experiment(rules: Row, place: Place) -> Experiment:
    """The run of a place; where rates are chosen, validation pictures are never trained on."""
    budget, choice = rules["budgets"][place.budget], arm(place.method).settings
    joined = budget["joined"] and place.stage == "confirm"
    suite = rules["confirmation" if place.stage == "confirm" else "rates"]["suite"]
    epochs = budget["epochs"] // 2 if choice.half else budget["epochs"]
    values = {**rules["trunk"], **rules["training"], "epochs": epochs, "images": budget["images"]}
    values |= {"data": f"{suite}/{place.task}{JOINED if joined else ''}", "seed": place.seed}
    values |= {"val": 0 if joined else None}
    return choice.into(Experiment(Pictures("")).changed(**values)).changed(lr=place.rate)


def rate_places(rules: Row, budgets: list[str], methods: list[str]) -> Iterator[Place]:
    """The runs that choose the rates."""
    asked = rules["rates"]
    for budget in budgets:
        for method in methods:
            for task in asked["tasks"]:
                for seed in asked["seeds"]:
                    for rate in asked["grid"]:
                        yield Place("rates", budget, method, rate, task, seed)


def chosen(rules: Row, kept: Store, budget: str, method: str) -> float | None:
    """The rate by the protocol's rule; None where a run is missing."""
    means: dict[float, list[float]] = {rate: [] for rate in rules["rates"]["grid"]}
    for place in rate_places(rules, [budget], [method]):
        key = key_of(vars(place))
        if key not in kept:
            return None
        score = kept[key].get("scores")  # a run that failed counts as 0
        means[place.rate].append(score["accuracy"] if score else 0.0)
    return max(means, key=lambda rate: (statistics.fmean(means[rate]), -rate))


def confirming(rules: Row, kept: Store, budgets: list[str], methods: list[str]) -> Iterator[Place]:
    """The runs that count, of the methods with a chosen rate."""
    asked = rules["confirmation"]
    for budget in budgets:
        rates = {method: chosen(rules, kept, budget, method) for method in methods}
        for seed in asked["seeds"]:
            for task in asked["tasks"]:
                for method, rate in rates.items():
                    if rate is not None:
                        yield Place("confirm", budget, method, rate, task, seed)


def carry(rules: Row, places: list[Place], kept: Store, out: Path, args: Any) -> None:
    """Run the trials that are not kept."""
    trials: list[Trial] = []
    for place in places:
        key = key_of(vars(place))
        if key in kept and not kept[key]["error"]:  # a failed one is tried again
            continue
        one, test = experiment(rules, place), place.stage == "confirm"
        inputs = {
            "experiment": one.flat(),
            "folder": str((out / "runs" / key).absolute()),
            "shared": str((out / "shared").absolute()),
            "test": test,
            "evaluate_every": 0,
        }
        about = {"key": key, "place": vars(place)}
        stack = shape_of(one, test=test)
        trials.append(Trial(str(place), inputs | about, place.method + place.budget, stack))

    def done(end: TrialEnd) -> None:
        row: Row = {**end.trial.inputs["place"], "error": end.error}
        if end.result is not None:
            found = end.result["results"]
            part = found["test" if row["stage"] == "confirm" else "val"]
            row["scores"] = {name: part[name] for name in SCORES if part.get(name) is not None}
            row |= {"cpu_seconds": found["cpu_seconds"], "code": end.result["origin"]["code"]}
            row["chosen"] = end.result["origin"]["chosen"]
        kept.add(end.trial.inputs["key"], row)

    how: Row = {"jobs": args.jobs, "threads": args.threads, "report": print}
    run_told(trials, one_run, done=done, describe=said, **how)


def said(result: Mapping[str, Any]) -> str:
    """A result in a few words."""
    found = result["results"]
    return f"{100 * (found.get('test') or found['val'])['accuracy']:.1f} %"


def _value(row: Row, name: str) -> float | None:
    return row["cpu_seconds"] if name == "cpu" else row["scores"].get(name)


def batched(seeds: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """So many seeds at a time, so that a study stopped early has all tasks of some seeds."""
    yield from (seeds[i : i + size] for i in range(0, len(seeds), size))


def sheet_of(rules: Row, kept: Store, budget: str) -> Sheet[str, str, Row]:
    """The scores of the confirmation at one budget."""
    asked, methods = rules["confirmation"], (*rules["pair"], *rules["beside"])
    results = {
        (row["method"], row["task"], row["seed"]): row
        for row in kept.rows.values()
        if (row["stage"], row["budget"]) == ("confirm", budget) and "scores" in row
    }
    return Sheet(methods, tuple(asked["tasks"]), tuple(asked["seeds"]), results, _value)


def interval(found: Differences | None, scale: float) -> str:
    """Mean and t-interval of the pairs."""
    if found is None or found.n < 3:
        return ""
    mean, half = Spread.of(found.known.tolist()).mean, found.half_width
    low, high = scale * (mean - half), scale * (mean + half)
    return f"{scale * mean:+.2f} ({low:+.2f} to {high:+.2f}; {found.n})"


def page(rules: Row, kept: Store, args: Any) -> None:
    """What there is, as a table for each budget."""
    body: list[str] = []
    for budget, asked in rules["budgets"].items():
        sheet = sheet_of(rules, kept, budget)
        body += [f"## {asked['epochs']} epochs on {asked['images'] or '1,000'} images", ""]
        rows = list(rows_of(rules, kept, budget, sheet))
        if not rows:
            command = f"python benchmarks/mosa_pairs.py STAGE --budgets {budget}"
            body += [f"Not run yet: `{command}`, with `rates`, then `confirm`.", ""]
            continue
        head = ["method", "rate", "mean accuracy", "runs", f"minus {rules['pair'][1]}: points"]
        head += ["loss", "loss after one temperature", "calibration error, points", "CPU, training"]
        body += [*markdown(head, rows), "", *sentence(rules, sheet)]
    about = (
        f"{rules['about']} Six tasks of the suite `fresh`; rates chosen on validation pictures of "
        "three other tasks, from one grid for all. Differences are paired by task and seed, with "
        "the 95 % t-interval and the number of pairs. Protocol: `benchmarks/mosa_pairs.json`."
    )
    publish("MoSA against its own adapter, pair by pair", about, [*body, NOTES], args)


def rows_of(rules: Row, kept: Store, budget: str, sheet: Any) -> Iterator[list[str]]:
    """A row for each method that was run."""
    base = rules["pair"][1]
    for method in sheet.arms:
        known = sheet.of(method, "accuracy")
        known = known[~(known != known)]
        rate = chosen(rules, kept, budget, method)
        if not len(known) or rate is None:
            continue
        row = [method, f"{rate:g}", f"{100 * known.mean():.1f}", str(len(known))]
        for name, scale in (("accuracy", 100), ("loss", 1), ("tempered_loss", 1), ("ece", 100)):
            less = None if method == base else sheet.minus(method, base, name)
            row.append(interval(less, scale))
        cpu = sheet.of(method, "cpu")
        yield [*row, f"{cpu[~(cpu != cpu)].mean():.1f} s"]


def sentence(rules: Row, sheet: Any) -> list[str]:
    """What the pairs say; nothing with fewer than three."""
    ours, base = rules["pair"]
    found = sheet.minus(ours, base, "accuracy")
    if found is None or found.n < 3:
        return []
    by = ", ".join(
        f"{task} {100 * mean:+.2f}"
        for task, mean in zip(sheet.tasks, found.by_task, strict=True)
        if mean == mean
    )
    between = found.interval
    drawn = f"{100 * between[0]:+.2f} to {100 * between[1]:+.2f}" if between else "none"
    return [
        f"{ours} minus {base}, {found.n} of {len(sheet.tasks) * len(sheet.seeds)} pairs: "
        f"{interval(found, 100)} points; bootstrap over tasks, then seeds: {drawn}. Ahead in "
        f"{found.ahead}, behind in {found.behind}. By task: {by}.",
        "",
    ]


def main() -> None:
    made = parser(__doc__, threads=1, reps=1)
    made.add_argument("stage", choices=("rates", "confirm", "page"))
    made.add_argument("--budgets", nargs="+")
    made.add_argument("--methods", nargs="+")
    made.add_argument("--jobs", type=int, default=1)
    made.add_argument("--results", type=Path, default=FILE.with_suffix(".jsonl"))
    made.add_argument("--out", type=Path, default=Path("runs/mosa-pairs"))
    args: argparse.Namespace = read(made)
    rules: Row = json.loads(FILE.read_text())
    digest = hashlib.sha256(FILE.read_bytes()).hexdigest()
    kept = Store(args.results.parent, args.results.name)
    if args.stage == "page":
        page(rules, kept, args)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    mark = args.out / "protocol.sha256"
    if mark.exists() and mark.read_text().strip() != digest:
        raise SystemExit(f"{args.out} holds runs of another protocol; choose another --out.")
    mark.write_text(digest + "\n")
    budgets, methods = args.budgets or [*rules["budgets"]], args.methods or [*rules["pair"]]
    with alone(args.out):
        if args.stage == "rates":
            places = list(rate_places(rules, budgets, methods))
            carry(rules, places, kept, args.out, args)
            return
        places = list(confirming(rules, kept, budgets, methods))
        for budget in budgets:
            for few in batched(rules["confirmation"]["seeds"], MOST):
                now = [p for p in places if p.budget == budget and p.seed in few]
                carry(rules, now, kept, args.out, args)


if __name__ == "__main__":
    main()
