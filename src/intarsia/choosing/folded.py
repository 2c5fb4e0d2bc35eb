"""Train candidates without a fold of the training pictures, and keep their answers and times."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import TrainingError
from ..core.reading import read_tensors
from ..core.store import Store, key_of
from ..data.splits import Fold, deal
from ..experiments import searching
from ..experiments.experiment import Experiment
from ..experiments.one_run import run as one_run
from ..experiments.pool import Trial, TrialEnd, run_trials
from ..results import numbers
from ..results.runs.reading import PREDICTIONS
from .arms import BenchArm
from .judging import HeldOutAnswers

FOLDS = 5
PILOT_IMAGES, PILOT_EPOCHS = 64, 2
SETTING_UP = 2.0  # seconds of a run that are not training: model, files, mistakes
SCORING = 0.5  # of the time that training takes for an image
FINISHING = 3.0  # seconds of the table and the page

Candidate = tuple[str, Experiment]
"""The name of its method, and the run that would count."""


@dataclass(frozen=True, eq=False)
class Row:
    """A candidate that was trained: its answers and its seconds; or why it failed.

    parts: how many held-out parts it has answered.
    """

    name: str
    experiment: Experiment
    answers: HeldOutAnswers | None = None
    parts: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def val(self) -> Mapping[str, float]:
        """Its scores on held-out pictures."""
        return {} if self.answers is None else self.answers.totals

    @property
    def candidate(self) -> Candidate:
        return self.name, self.experiment


@dataclass(frozen=True)
class Cost:
    """Seconds: of a run beside its training, and of an image, once and in each epoch."""

    overhead: float
    once: float
    each: float

    def of(self, images: int, scored: int, epochs: int, *, fresh: bool = True) -> float:
        """Return the seconds of a run.  fresh: what is computed once is not there yet."""
        seen = (epochs * images + SCORING * scored) * self.each
        return self.overhead + seen + fresh * (images + scored) * self.once


@dataclass
class Folded:
    """The training pictures in folds, and what candidates have answered to them.

    start: what all candidates share.  labels: of the training pictures.  test: number of test
    pictures.  out: where all of it is kept, so that a search goes on.  running: of `Running`.
    """

    start: Experiment
    labels: np.ndarray
    test: int
    out: Path
    running: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.store = Store(self.out, "search.jsonl")
        self.spent, self.costs = 0.0, dict[int, Cost]()
        self.measured: dict[tuple[Any, ...], float] = {}  # seconds of an image
        self.beside = SETTING_UP  # seconds of a run beside its training
        self.frozen: set[tuple[Any, ...]] = set()  # what was computed once
        self.known = dict[tuple[str, ...], HeldOutAnswers]()
        split, seed = self.start.pictures.split_seed, self.start.training.seed
        self.split_seed = seed if split is None else split
        self.folds = deal(self.labels, FOLDS, self.split_seed)
        self.held = -(-len(self.labels) // FOLDS)

    @property
    def trained(self) -> int:
        """The number of pictures that a candidate is trained on."""
        return len(self.labels) - self.held

    def answers(self, row: Row, parts: int) -> HeldOutAnswers:
        """Return a candidate's answers to its first parts."""
        keys = tuple(self._key(row.experiment, part) for part in range(parts))
        if keys not in self.known:
            parts_read = [read_tensors(self._file(key)) for key in keys]
            columns = [[f[name] for f in parts_read] for name in ("logits", "labels")]
            seeds, folds = zip(*(divmod(part, FOLDS) for part in range(parts)), strict=True)
            where = [np.flatnonzero(self.folds == fold) for fold in folds]
            self.known[keys] = HeldOutAnswers.of(list(zip(seeds, where, *columns, strict=True)))
        return self.known[keys]

    def answer(self, row: Row) -> Row:
        """Return a candidate with its answers to the next fold, of a training that is kept."""
        key = self._key(row.experiment, row.parts)
        if key not in self.store:
            self._train(row, key)
        record = self.store[key]
        self.spent += record["seconds"]
        self._measure(row, record)
        grown = replace(row, seconds=row.seconds + record["seconds"], error=record["error"])
        if not record["error"]:
            parts = row.parts + 1
            grown = replace(grown, parts=parts, answers=self.answers(row, parts))
        return grown

    def takes(self, name: str, experiment: Experiment, parts: range) -> float:
        """Return the seconds of so many parts of a candidate."""
        cost, epochs = self.cost(name, experiment), experiment.training.epochs
        fresh = [(*self._prefix(experiment), part % FOLDS) not in self.frozen for part in parts]
        return sum(cost.of(self.trained, self.held, epochs, fresh=new) for new in fresh)

    def last_fit(self, name: str, experiment: Experiment) -> float:
        """Return the seconds of the fit on everything, its look at the test part, and the page."""
        cost = self.cost(name, experiment)
        return cost.of(len(self.labels), self.test, experiment.training.epochs) + FINISHING

    def cost(self, name: str, experiment: Experiment) -> Cost:
        """Return what a candidate costs: as measured, or as its method at another depth or size."""
        size = experiment.adapted.size or 0
        cost = replace(self.costs[size], overhead=self.beside)
        if (each := self.measured.get((name, *self._prefix(experiment)))) is not None:
            return replace(cost, each=each)
        blocks = experiment.adapted.last_blocks or 1
        scaled = [
            seconds * max(1.0, blocks / (depth or blocks)) * max(1.0, size / (side or size)) ** 2
            for (method, side, depth), seconds in self.measured.items()
            if method == name
        ]
        return replace(cost, each=max(scaled, default=cost.each))

    def time_sizes(self, arm: BenchArm, sizes: Sequence[int], limit: float) -> None:
        """Train a pilot of each size that takes less than a limit; the smallest always.

        Raises: TrainingError if one fails.
        """
        images = min(len(self.labels), max(PILOT_IMAGES, 2 * len(np.unique(self.labels, axis=0))))
        took, before, fold = 0.0, 1, -(-images // FOLDS)
        for size in sizes:
            if self.costs and took * (size / before) ** 2 > limit:
                break
            experiment = arm.settings.into(self.start.changed(size=size, epochs=PILOT_EPOCHS))
            row = Row("pilot", experiment.changed(images=images, shots=None))
            key = self._key(row.experiment, 0)
            if key not in self.store:
                self._train(row, key)
            record = self.store[key]
            self.spent += record["seconds"]
            if record["error"]:
                raise TrainingError("pilot", got=record["error"], want="a run", fix="Mend that.")
            each = (record["trained"] - record["once"]) / (images - fold) / PILOT_EPOCHS
            self.costs[size] = Cost(0.0, record["once"] / (images - fold), each)
            self.beside = record["seconds"] - record["trained"]
            took, before = record["trained"], size

    def _measure(self, row: Row, record: Mapping[str, Any]) -> None:
        """Note what a part took."""
        if record["error"]:
            return
        experiment, prefix = row.experiment, (*self._prefix(row.experiment), row.parts % FOLDS)
        # a run tells what is computed once as it took the first time
        training = max(0.0, record["trained"] - record["once"])
        once = 0.0 if prefix in self.frozen else record["once"]
        self.measured[row.name, *prefix[:-1]] = training / self.trained / experiment.training.epochs
        self.beside = max(0.0, record["seconds"] - training - once)
        self.frozen.add(prefix)

    def _prefix(self, experiment: Experiment) -> tuple[Any, ...]:
        """Return what the frozen blocks of a candidate depend on, beside the pictures."""
        return experiment.adapted.size, experiment.adapted.last_blocks

    def _train(self, row: Row, key: str) -> None:
        """Train one part, and keep its seconds in the store and its answers in a file."""
        folder = (self.out / "search" / key).absolute()
        seed, fold = divmod(row.parts, FOLDS)
        experiment = row.experiment
        if seed:
            experiment = experiment.changed(
                seed=experiment.training.seed + seed, split_seed=self.split_seed
            )
        inputs = {
            "experiment": experiment.flat(),
            "folder": str(folder),
            "shared": str((self.out / "shared").absolute()),
            "test": False,
            "fold": asdict(Fold(fold, FOLDS, self.split_seed)),
            "evaluate_every": experiment.training.epochs,
            "running": self.running,
        }

        def done(end: TrialEnd) -> None:
            record: dict[str, Any] = {"seconds": end.seconds, "error": end.error}
            if end.result is not None:
                results = end.result["results"]
                record["error"] = searching.unusable(results["val"], "val")
                record |= {"trained": results["seconds"], "once": results.get("seconds_once", 0.0)}
                if not record["error"]:
                    shutil.move(folder / PREDICTIONS, self._file(key))
            shutil.rmtree(folder, ignore_errors=True)
            self.store.add(key, record)

        trial = Trial(f"{row.name}, {described(experiment)}", inputs)
        run_trials([trial], one_run, jobs=1, executor="here", done=done)

    def _key(self, experiment: Experiment, part: int) -> str:
        return key_of({"experiment": experiment.flat(), "part": part})

    def _file(self, key: str) -> Path:
        return self.out / "search" / f"{key}.safetensors"


def described(experiment: Experiment) -> str:
    """Return what is searched for, of a candidate."""
    blocks = experiment.adapted.last_blocks
    depth = f", last {blocks} blocks" if blocks else ""
    epochs = numbers.plural(experiment.training.epochs, "epoch")
    return f"{experiment.adapted.size} px, {epochs}, rate {experiment.training.lr:g}{depth}"
