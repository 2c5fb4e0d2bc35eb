"""Runs on labelled rows: a classifier of texts or of numbers, fitted, scored and kept in a folder.

run = fit_labelled(LabelledFit("texts.csv", method="tfidf"), "runs/texts")
run.evaluate()
run.predict(["Who was first?"])
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..core.errors import CheckpointError, ConfigError, DataError
from ..core.files import read_json, repaired, writing
from ..core.folders import check_empty
from ..core.labelled import FILE
from ..core.reading import read_tensors
from ..core.sealing import check_sealed, seal_folder
from ..data.labelled import (
    LabelledRows,
    LabelledSplits,
    Rows,
    load_labelled,
    read_labelled,
    read_unlabelled,
)
from ..data.sets import located
from ..models.classify.classifier import RowClassifier, write_files
from ..models.classify.standalone import SETTINGS, TENSORS
from ..models.classify.words import NUMBERS, check_method, parse_method
from ..train.folds import deal
from ..train.probe import FOLDS
from ..train.scores import Metrics
from .labelled_adapting import fitted_member

ANSWERS = "predictions.safetensors"
DEFAULT = "tfidf"
ONLY_PROBE = "A table of numbers: logistic regression is fitted to convergence, and nothing else."
LEAST = 1e-12  # probability, in a logit
Report = Callable[[str], None]


@dataclass(frozen=True)
class LabelledFit:
    """Settings of a run on labelled rows.

    data, text, label: as for `load_labelled`.  method: as of `RowClassifier`; None = tfidf, or
    numbers for a table.  seed: of the folds and of the split.  split_seed: of the split, None =
    seed.  train, test: numbers of rows, None = all, or a fifth.
    """

    data: str
    text: str | None = None
    label: str | None = None
    method: str | None = None
    seed: int = 0
    split_seed: int | None = None
    train: int | None = None
    test: int | None = None

    def splits(self) -> LabelledSplits:
        """Read the data, and return their parts."""
        seed = self.seed if self.split_seed is None else self.split_seed
        options = {"text": self.text, "label": self.label, "train": self.train, "test": self.test}
        return load_labelled(self.data, seed=seed, **options)

    def command(self) -> str:
        """Return the command that repeats the run."""
        path = Path(self.data)
        here = path.is_relative_to(Path.cwd())
        words = ["intarsia", "fit", str(path.relative_to(Path.cwd()) if here else path)]
        options = {"--text": self.text, "--label": self.label, "--method": self.method}
        options |= {"--seed": self.seed or None, "--split-seed": self.split_seed}
        options |= {"--images": self.train, "--test": self.test}
        for option, value in options.items():
            words += [] if value is None else [option, str(value)]
        return shlex.join(words)


@dataclass(frozen=True, eq=False)
class LabelledRun:
    """A run on labelled rows that is finished.

    folder: of the run.  settings: it was made with.  classifier: fitted.  record: of run and data.
    """

    folder: Path
    settings: LabelledFit
    classifier: RowClassifier
    record: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(map(str, self.classifier.classes_))

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of a table's columns of numbers; empty for texts."""
        return tuple(self.record["data"]["columns"])

    @property
    def unit(self) -> str:
        """The word for a row."""
        return "rows" if self.columns else "texts"

    def predict(self, rows: Any) -> list[dict[str, Any]]:
        """Return the class and all probabilities, the likeliest first, of texts or of numbers."""
        shares = self.classifier.predict_proba(rows)
        named = [dict(zip(self.classes, map(float, row), strict=True)) for row in shares]
        ranked = [dict(sorted(row.items(), key=lambda item: -item[1])) for row in named]
        return [{"class": next(iter(row)), "classes": row} for row in ranked]

    def evaluate(self, data: str | None = None, part: str | None = None) -> dict[str, Any]:
        """Score the run on a part of its data, or on other data with the same classes.

        data: None = the run's own.  part: "train" or "test" of its own; of other data also "all",
        which is meant if nothing is said.
        Raises: ConfigError for a part that is not there; DataError for other classes.
        """
        rows = self._part(data, part)
        shares = self.classifier.predict_proba(rows.rows)
        scores = scored(shares, rows.labels)
        right, counts = shares.argmax(1) == rows.labels, np.bincount(rows.labels)
        classes = {
            name: {"n": int(counts[i]), "accuracy": float(right[rows.labels == i].mean())}
            for i, name in enumerate(self.classes)
            if i < len(counts) and counts[i]
        }
        return {"set": rows.name, "n": len(rows), **scores.scores(), "classes": classes}

    def _part(self, data: str | None, part: str | None) -> LabelledRows:
        """Return a part of the data, with labels numbered as in the run; see `evaluate`."""
        if data is None:
            splits = self.settings.splits()
            parts = {"train": splits.train, "test": splits.test}
            name = part or "test"
        else:
            parts = read_labelled(data, text=self.settings.text, label=self.settings.label)
            name = part or ("test" if "test" in parts else "all")
            if name == "all" and "all" not in parts:
                name = "train"
        if name not in parts:
            fix = "Leave --part out."
            raise ConfigError("part", got=name, want=", ".join(parts), fix=fix)
        rows = parts[name]
        # classes of other data are numbered by the run's
        if strange := sorted(set(rows.classes) - set(self.classes)):
            fix = "Score it on data with the same classes."
            want = ", ".join(self.classes)
            raise DataError(f"classes of {rows.name}", got=strange, want=want, fix=fix)
        place = np.array([self.classes.index(name) for name in rows.classes])
        return dataclasses.replace(rows, labels=place[rows.labels], classes=self.classes)


def scored(shares: np.ndarray, labels: np.ndarray) -> Metrics:
    """Return the scores of probabilities (n, classes) against class numbers (n,)."""
    logits = torch.from_numpy(np.log(np.clip(shares, LEAST, 1.0)))
    return Metrics.of(logits, torch.from_numpy(labels))


def fit_labelled(
    settings: LabelledFit, out: str | Path, *, report: Report = lambda _: None
) -> LabelledRun:
    """Fit a classifier to the training rows, score it on the test rows, and write the run folder.

    out: the folder, which must be new.
    Raises: ConfigError for a folder in use or an unknown method; DataError, as `load_labelled`.
    """
    check_empty(Path(out), settings.data)
    check_method(settings.method or DEFAULT)
    settings = dataclasses.replace(settings, data=located(settings.data))
    splits = settings.splits()
    if splits.train.columns:
        report(ONLY_PROBE)
    report(f"{len(splits.train):,} {splits.train.unit} to train on, {len(splits.test):,} to test.")
    method = settings.method or (NUMBERS if splits.train.columns else DEFAULT)
    began = time.perf_counter()
    train, pairs = splits.train, parse_method(method)
    fold, count = deal(train.labels, FOLDS, settings.seed), len(train.classes)
    members = [
        fitted_member(word, train.rows, train.labels, count, fold, train.columns)
        for word, _ in pairs
    ]
    shares = [share for _, share in pairs]
    classifier = RowClassifier.of(members, shares, train.classes, settings.seed)
    seconds = time.perf_counter() - began
    return write_run(settings, splits, classifier, seconds, Path(out), asked=method)


def write_run(
    settings: LabelledFit,
    splits: LabelledSplits,
    classifier: RowClassifier,
    seconds: float,
    out: Path,
    **record: Any,
) -> LabelledRun:
    """Score a fitted classifier on the test rows, and write its run folder, whole or not at all.

    settings: their method becomes the classifier's, with the layers that were chosen.  record:
    further entries of the record, such as asked, the method as it was given.
    """
    held_out = scored(classifier.held_out_, splits.train.labels)
    settings = dataclasses.replace(settings, method=classifier.method)
    test = scored(classifier.predict_proba(splits.test.rows), splits.test.labels)
    parts = {"train": splits.train, "test": splits.test}
    data = {part: {"n": len(rows), "digest": rows.digest} for part, rows in parts.items()}
    data |= {"columns": list(splits.train.columns), "published": splits.published}
    results = {"seconds": seconds, "held_out": held_out.scores(), "test": test.scores()}
    content = {"settings": dataclasses.asdict(settings), "data": data, "results": results}
    content = content | record
    out.parent.mkdir(parents=True, exist_ok=True)
    with writing(out) as scratch:
        scratch.mkdir()
        write_files(classifier, scratch)
        answers = {name: tensor.contiguous() for name, tensor in test.predictions.items()}
        answers["rows"] = torch.from_numpy(splits.test.digests)
        save_file(answers, scratch / ANSWERS)
        seal_folder(scratch, FILE, content)
    return LabelledRun(out, settings, classifier, content)


def is_labelled_run(folder: Path | None) -> bool:
    """Decide whether a folder is a run on labelled rows."""
    return folder is not None and (folder / FILE).is_file()


def open_labelled(folder: str | Path) -> LabelledRun:
    """Open a run on labelled rows.  Raises: CheckpointError for anything else."""
    folder = repaired(folder)
    content = read_record(folder)
    classifier = RowClassifier.load(folder)
    try:
        settings = LabelledFit(**content["settings"])
        _ = content["data"]["columns"], content["results"]["test"]
    except (KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    return LabelledRun(folder, settings, classifier, content)


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of a run on labelled rows.  Raises: CheckpointError."""
    try:
        needs = (SETTINGS, TENSORS, ANSWERS)
        return check_sealed(folder / FILE, read_json(folder / FILE), needs=needs)
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error


@dataclass(frozen=True, eq=False)
class RowAnswers:
    """Answers of a run to its test rows.  rows: (n,) digests; right: (n,) of bool."""

    rows: np.ndarray
    right: np.ndarray


def answers_of(folder: Path) -> RowAnswers:
    """Return the answers of a run on its test rows.  Raises: CheckpointError."""
    try:
        tensors = read_tensors(folder / ANSWERS)
        right = tensors["logits"].argmax(1) == tensors["labels"]
        return RowAnswers(tensors["rows"].numpy(), right.numpy())
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    want, fix = "a run on labelled texts or numbers", "Fit it again."
    return CheckpointError(f"run {folder}", got=error, want=want, fix=fix)


def rows_to_predict(run: LabelledRun, files: Sequence[str]) -> list[tuple[str, Rows]]:
    """Return (file, its rows) of files to classify."""
    return [(file, read_unlabelled(file, run.settings.text, run.columns)) for file in files]
