"""LT-SFT: the places that drift most beat random ones, and sparse deltas add up (2110.07560)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import TensorDataset

from ..core import Claim, Result
from ..core.claim import Report
from ..experiments.pool import Arm
from ..fitting import fit, fit_in_phases
from ..hosts import SparseDelta
from ..methods import LtSft
from . import mix6
from .study import by_arm, class_scores, each, result_of, shown

STEPS = 600
LR = 2e-3  # that of the backbone's own training, for all arms; none was searched
TASKS = ("rotate", "flip")
DENSITIES = (0.02, 0.005)
TWICE = f"random, {DENSITIES[0]:.1%}, twice the steps"  # as many as both phases of drift

SUMS = {
    "drift, 2 %": LtSft(0.02),
    "random, 2 %": LtSft(0.02, support="random"),
    "drift, 30 %": LtSft(0.3),
    "all": LtSft(1.0),
}

Train = Callable[[str, int], float]  # task, seed -> error


def options(seed: int, sets: int = 1, times: int = 1) -> dict[str, Any]:
    """Of `fit`; sets: how many tasks' digits the data has; times: of the steps."""
    epochs = mix6.epochs(times * STEPS, sets)
    return {"epochs": epochs, "batch_size": mix6.BATCH, "lr": LR, "seed": seed}


def arms() -> list[Arm[Train]]:
    """What is compared: each trains the backbone on one task and gives its test error."""

    def full(task: str, seed: int) -> float:
        model = mix6.backbone()
        fit(model, mix6.data("train", [task]), **options(seed))
        return mix6.error(model, [task])

    def sparse(method: LtSft, times: int = 1) -> Train:
        def run(task: str, seed: int) -> float:
            model = mix6.backbone()
            fit_in_phases(model, method, mix6.data("train", [task]), **options(seed, 1, times))
            return mix6.error(model, [task])

        return run

    found: list[Arm[Train]] = [Arm("full fine-tuning", full)]
    for density in DENSITIES:
        for support in ("drift", "random", "magnitude"):
            name = f"{support}, {density:.1%}"
            found.append(Arm(name, sparse(LtSft(density, support=support))))
    return [*found, Arm(TWICE, sparse(LtSft(DENSITIES[0], support="random"), 2))]


class DeltaRun(NamedTuple):
    error: float


def of_places(seeds: tuple[int, ...], report: Report) -> Result:
    """Every arm on both tasks; the larger of the two tasks' median ratios of errors."""
    found = each(
        arms(), seeds, lambda run, task, seed: DeltaRun(run(task, seed)), report, tasks=TASKS
    )
    errors = {name: found.of(name, "error") for name in found.arms}  # (tasks, seeds) each
    ours = f"drift, {DENSITIES[0]:.1%}"
    ratios = dict(zip(TASKS, (errors[ours] / errors[TWICE]).tolist(), strict=True))
    rows = []
    for name in found.arms:
        line: dict[str, Any] = {"places": name}
        same = f"random, {name.partition(', ')[2].partition(',')[0]}"
        for i, task in enumerate(TASKS):
            line[f"error, {task}"] = shown(errors[name][i].tolist(), ".3f")
            over = np.median(errors[name][i] / errors[same][i]) if same in errors else None
            line[f"/ random, {task}"] = "" if over is None else f"{over:.2f}"
        rows.append(line)
    medians = {task: statistics.median(values) for task, values in ratios.items()}
    note = (
        f"Error at the places that drifted most over error at random places trained for as many "
        f"steps as both phases, density 2 %, median of {len(seeds)} seeds: "
        + ", ".join(f"{task} {value:.2f}" for task, value in medians.items())
        + f". {STEPS} steps a phase, lr {LR}. In the table, over random places of one phase."
    )
    every = tuple(value for values in ratios.values() for value in values)
    return Result(max(medians.values()), max(every) - min(every), every, tuple(rows), note)


def languages() -> dict[str, tuple[TensorDataset, TensorDataset]]:
    """(train, test) of: a language, a task in the first language, and that task in the new one.

    The new language is inverted pixels; knowing it, digits keep their labels whether inverted or
    not. The task is another labelling, y + 3, of upright pixels. Nobody trains on the third.
    """

    def relabelled(part: str, task: str, shift: int) -> TensorDataset:
        x, y = mix6.data(part, [task]).tensors
        return TensorDataset(x, (y + shift) % mix6.CLASSES)

    def both(part: str) -> TensorDataset:
        sets = relabelled(part, "identity", 0), relabelled(part, "invert", -3)
        return TensorDataset(
            *(torch.cat(pair) for pair in zip(*(s.tensors for s in sets), strict=True))
        )

    made = {
        "language": both,
        "task": lambda part: relabelled(part, "identity", 3),
        "task in the language": lambda part: relabelled(part, "invert", 0),
    }
    return {name: (of("train"), of("test")) for name, of in made.items()}


def compose(seeds: tuple[int, ...], report: Report) -> Result:
    """Deltas of a language and of a task, added, on what neither has seen, by choice of places."""
    sets = languages()

    def accuracy(delta: SparseDelta, name: str) -> float:
        model = mix6.backbone()
        delta.apply(model)
        return class_scores(model, sets[name][1], 512).accuracy

    def trained(name: str, of: LtSft, seed: int) -> SparseDelta:
        head, count = ("frozen", 2) if name == "language" else ("whole", 1)
        method, rows = replace(of, head=head), sets[name][0]
        return fit_in_phases(mix6.backbone(), method, rows, **options(seed, count)).found

    def work(of: LtSft, seed: int) -> dict[str, float]:
        speaks, solves = (trained(name, of, seed) for name in ("language", "task"))
        return {
            "language alone": accuracy(speaks, "language"),
            "task alone": accuracy(solves, "task"),
            "sum": accuracy(speaks + solves, "task in the language"),
            "without the language": accuracy(solves, "task in the language"),
            "shared places": shared(speaks, solves),
        }

    found = by_arm(SUMS, seeds, work, report)
    drift, random, *_ = found.values()
    gains = [100 * (a["sum"] - b["sum"]) for a, b in zip(drift, random, strict=True)]
    note = (
        "Accuracy of the sum of two deltas on a task in a language, which neither was trained on: "
        f"2 % that drifted minus 2 % at random, {statistics.median(gains):+.1f} points (median of "
        f"{len(seeds)} seeds). 'shared places': of the sparser delta's entries, those that the "
        "other has too."
    )
    rows = [
        {"places": name} | {what: shown([one[what] for one in made], ".3f") for what in made[0]}
        for name, made in found.items()
    ]
    return result_of(gains, rows, note, statistics.median)


def shared(a: SparseDelta, b: SparseDelta) -> float:
    """The share of the smaller delta's places that the other changes too."""
    both = 0
    for name in a.entries.keys() & b.entries.keys():
        both += int(torch.isin(a.entries[name][0], b.entries[name][0]).sum())
    return both / max(1, min(len(a), len(b)))


CLAIMS = (
    Claim(
        "lt-sft",
        system="LT-SFT",
        sentence="Weights chosen by how far they move in a full training, rewound and trained "
        "alone, solve a task better than as many weights chosen at random and trained for as many "
        "steps in all (arXiv:2110.07560).",
        baseline="error at random places, equal density, twice the steps; the worse of two tasks",
        bar=0.75,
        sense="<=",
        run=of_places,
        minutes=8,
    ),
    Claim(
        "lt-sft-composition",
        sentence="Deltas of a language and of a task at the places that drifted most add up better "
        "than those of the same density at random places (arXiv:2110.07560).",
        baseline="the same sum at random places, 2 % each; accuracy in points",
        bar=0.0,
        sense=">=",
        run=compose,
        minutes=6,
    ),
)
