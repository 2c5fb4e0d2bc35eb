"""Run folders as frozen records: what a report needs, checked while it is read.

run.json is wanted; metrics.jsonl, predictions.safetensors and mistakes/ may be missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from safetensors import SafetensorError

from ...core.errors import CheckpointError, DataError
from ...core.files import read_json
from ...core.folders import METRICS, RUN, runs_in
from ...core.reading import open_tensors
from ...core.sealing import check_file, is_format
from ..wording import joined
from .curves import Point, read_curve
from .items import RunItems, Tensors, run_items
from .mistakes import Mistakes, read_mistakes

PREDICTIONS = "predictions.safetensors"
FORMAT = 1
SPLITS = ("test", "val")  # the first that was scored is the result
T = TypeVar("T")


@dataclass(frozen=True)
class SplitScores:
    """The result: shares of right answers, 0 ... 1, and mean cross-entropy, of one split.

    ece: calibration error; tempered_loss: after one temperature, fitted on val.
    measure: the meaning of `accuracy`; of several labels a picture the mean average precision,
    which then stands in its place, with f1 next to it.
    """

    split: str
    accuracy: float
    balanced_accuracy: float | None
    loss: float | None
    ece: float | None = None
    tempered_loss: float | None = None
    f1: float | None = None
    measure: str = "accuracy"


MEASURES = ("mean_average_precision", "accuracy")  # the first that a task has is looked at


def measure(scores: Mapping[str, float]) -> str:
    """Return the name of the score that ranks runs: of MEASURES the first that a task has."""
    return next((name for name in MEASURES if name in scores), "accuracy")


def score_of(val: Mapping[str, float]) -> float:
    """Return the validation score that ranks runs, 0 ... 1: 1 / perplexity for texts.

    val: name -> value of the scores on the validation part.
    """
    return 1 / val["perplexity"] if "perplexity" in val else val[measure(val)]


@dataclass(frozen=True)
class RunCosts:
    """Parameters, training seconds, peak bytes ("resident" or "accelerator"; None = not known)."""

    trained: int
    trained_without_head: int
    parameters: int
    seconds: float
    peak_bytes: int | None
    peak_kind: str


@dataclass(frozen=True, eq=False)
class Predictions:
    """Class of each picture of the scored split, and the class it was taken for.  (n,), (n,)."""

    labels: np.ndarray
    predicted: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """Finished run; `record` is its run.json."""

    folder: Path
    seed: int
    scores: SplitScores
    costs: RunCosts
    curve: tuple[Point, ...]
    answers: Predictions | None
    mistakes: Mistakes | None
    record: Mapping[str, Any]

    @property
    def given(self) -> Mapping[str, Any]:
        """Notes of the caller of `fit`: label, model, data."""
        notes = self.record.get("record")
        return notes if isinstance(notes, Mapping) else {}

    @cached_property
    def items(self) -> RunItems | None:
        """Values of its items, see `read_items`."""
        return read_items(self.folder)

    @cached_property
    def validation(self) -> tuple[float, float] | None:
        """The validation score that ranks runs, 0 ... 1, and minus the loss; larger is better.

        None without a validation part. A run with a score or loss that is not finite has 0 instead
        of the score, or minus infinity instead of the loss, so that it is never chosen.
        Raises: CheckpointError for scores that are no numbers.
        """
        val = self.record["results"].get("val")
        if not isinstance(val, Mapping) or not val:
            return None
        try:
            score, loss = score_of(val), val.get("loss", 0.0)
            usable = math.isfinite(score), math.isfinite(loss)
        except (KeyError, TypeError, ZeroDivisionError) as error:
            raise damaged(self.folder / RUN, f"results.val = {val!r}") from error
        # so that a diverged run is never chosen
        return score if usable[0] else 0.0, -loss if usable[1] else -math.inf

    @property
    def samples(self) -> str:
        """Kind of the items that are right or wrong: "tokens" of a text, or "pictures"."""
        scores = self.record["results"].get(self.scores.split)
        return "tokens" if isinstance(scores, Mapping) and "perplexity" in scores else "pictures"


def gather(folders: Iterable[Path | str]) -> tuple[FinishedRun, ...]:
    """Read run folders, and folders that contain run folders, in the order they were started.

    A folder named twice is read once.
    Raises: DataError for a path without a run; CheckpointError for one that is damaged.
    """
    # by resolved path, so that a folder named twice is one run
    runs: dict[Path, FinishedRun] = {}
    for folder in map(Path, folders):
        for path in _runs_in(folder):
            runs.setdefault(path.resolve(), read_run(path))
    if not runs:
        raise DataError(
            "runs", got="no folder", want="at least one run folder", fix="Name the runs to show."
        )
    return tuple(runs.values())


def read_run(folder: Path | str) -> FinishedRun:
    """Read one run folder, as `intarsia.fit(..., out=folder)` writes it.

    Raises: DataError if there is no finished, scored run; CheckpointError for a damaged one.
    """
    folder = Path(folder)
    record = _read_json(folder)
    scores = _scores(folder, record)
    # predictions may be missing: then there are no confusions and no intervals
    tensors = read_predictions(folder, scores)
    return FinishedRun(
        folder=folder,
        seed=need(record, "training.seed", int, folder),
        scores=scores,
        costs=_costs(folder, record),
        curve=read_curve(folder / METRICS),
        answers=None if tensors is None else _predicted_classes(folder, record, scores, tensors),
        mistakes=read_mistakes(folder),
        record=record,
    )


def _runs_in(folder: Path) -> Sequence[Path]:
    """Return the folder itself if it is of a run, else the run folders in it, by time of start."""
    if (found := runs_in(folder)) == [folder]:
        return found
    # run.json is read twice, so that a damaged one is still reported by `read_run`
    return sorted(found, key=lambda path: (str(_read_json(path).get("started")), path.name))


def _read_json(folder: Path) -> dict[str, Any]:
    """Read run.json, the record of one run."""
    path = folder / RUN
    if not path.is_file():
        _runs_in(folder)  # names the things that are there instead
        subject, got = f"run folder {str(folder)!r}", "a folder of runs"
        raise DataError(subject, got=got, want="one run", fix="Name one of the folders in it.")
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(record, dict):
        raise damaged(path, f"a {type(record).__name__}")
    if not is_format(record.get("format", FORMAT), FORMAT):
        fix = "Read it with the version of intarsia that wrote it (see versions in the file)."
        raise CheckpointError(f"format of {path}", got=record["format"], want=FORMAT, fix=fix)
    return record


def need(record: Mapping[str, Any], path: str, kind: type[T], folder: Path) -> T:
    """Return the value at a dotted path of run.json, after a check of its type.

    path: such as "training.seed"; kind: the type (float takes whole numbers, but none that is
      infinite).
    Raises: CheckpointError if it is missing or of another type.
    """
    value: Any = record
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise damaged(folder / RUN, f"no {path!r}")
        value = value[name]
    types: Any = (int, float) if kind is float else kind
    # True is an int for Python, but no number of a record
    wrong = not isinstance(value, types) or (isinstance(value, bool) and kind is not bool)
    if wrong or (isinstance(value, float) and not math.isfinite(value)):
        raise damaged(folder / RUN, f"{path} = {value!r}")
    return cast(T, value)


def _scores(folder: Path, record: Mapping[str, Any]) -> SplitScores:
    """Read a run's scores on its test part, or on its validation part if it has no test part."""
    results = need(record, "results", dict, folder)
    # the test part decides; a run without one is scored on validation
    split = next((name for name in SPLITS if name in results), None)
    if split is None:
        subject = f"results of {str(folder)!r}"
        fix = "Train with val=... or test=..., so that there is something to report."
        raise DataError(subject, got="no score", want="a score on a test or val part", fix=fix)
    rest = need(record, f"results.{split}", dict, folder)
    measure_name = measure(rest)
    share = need(record, f"results.{split}.{measure_name}", float, folder)
    if not 0 <= share <= 1:
        raise damaged(folder / RUN, f"results.{split}.{measure_name} = {share}")
    further = ("balanced_accuracy", "loss", "ece", "tempered_loss", "f1")
    return SplitScores(split, share, *(rest.get(name) for name in further), measure=measure_name)


def _costs(folder: Path, record: Mapping[str, Any]) -> RunCosts:
    peak = record["results"].get("peak_bytes")
    peak = peak if isinstance(peak, Mapping) else {}
    # an accelerator's memory is the one that runs out first
    kind = next((name for name in ("accelerator", "resident") if name in peak), "unknown")
    return RunCosts(
        trained=need(record, "parameters.trained", int, folder),
        trained_without_head=need(record, "parameters.trained_without_head", int, folder),
        parameters=need(record, "parameters.all", int, folder),
        seconds=need(record, "results.seconds", float, folder),
        peak_bytes=need(record, f"results.peak_bytes.{kind}", int, folder) if peak else None,
        peak_kind=kind,
    )


def class_names(record: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Return the names of a run's classes, "class 0" ... if they are not recorded."""
    notes, data = record.get("record"), record.get("data")
    notes = notes if isinstance(notes, Mapping) else {}
    parts = list(data.values()) if isinstance(data, Mapping) else []
    # names stand with a part, with the data, or in the caller's own notes
    for part in (*parts, notes.get("data"), notes):
        names = part.get("classes") if isinstance(part, Mapping) else None
        if isinstance(names, list) and len(names) == count:
            return tuple(map(str, names))
    return tuple(f"class {i}" for i in range(count))


def read_predictions(folder: Path, scores: SplitScores) -> Tensors | None:
    """Read predictions.safetensors; None if it is missing or of another part than the scores.

    Raises: CheckpointError for a damaged file.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        return None
    try:
        check_file(path)
        with open_tensors(path, "np") as file:
            split = (file.metadata() or {}).get("split")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    names = ("tokens", "hits", "loss") if "tokens" in tensors else ("logits", "labels")
    if missing := [name for name in names if name not in tensors]:
        raise damaged(path, f"no {joined(missing)}")
    # every tensor has a row for each item
    if len({len(value) for value in tensors.values()}) > 1:
        raise damaged(path, "tensors of unequal length")
    return None if split is not None and split != scores.split else tensors


def read_items(folder: Path) -> RunItems | None:
    """Read a run's values for each item it was scored on; None if it stored no predictions.

    Raises: DataError, CheckpointError as `read_run`.
    """
    if not (folder / PREDICTIONS).is_file():
        return None
    record = _read_json(folder)
    scores = _scores(folder, record)
    if (tensors := read_predictions(folder, scores)) is None:
        return None
    # the digest says which items were scored; runs without one are taken to share their items
    data = record.get("data")
    part_record = data.get(scores.split) if isinstance(data, Mapping) else None
    part = part_record.get("sha256") if isinstance(part_record, Mapping) else None
    return run_items(tensors, str(part))


def _predicted_classes(
    folder: Path, record: Mapping[str, Any], scores: SplitScores, tensors: Tensors
) -> Predictions | None:
    if "tokens" in tensors:
        return None
    path, logits, labels = folder / PREDICTIONS, tensors["logits"], tensors["labels"]
    if scores.measure != "accuracy" and labels.shape == logits.shape:
        return None  # several labels a picture: no one class for each
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        raise damaged(path, f"logits {logits.shape}, labels {labels.shape} {labels.dtype}")
    if not len(labels) or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise damaged(path, f"labels that are not 0 ... {logits.shape[1] - 1}")
    predicted = logits.argmax(1)
    # predictions of another run in this folder would give another accuracy
    share = float((predicted == labels).mean())
    if not math.isclose(share, scores.accuracy, abs_tol=1e-6):
        raise damaged(path, f"accuracy {share:.6f}, where run.json says {scores.accuracy:.6f}")
    return Predictions(labels, predicted, class_names(record, logits.shape[1]))


def damaged(path: Path, got: str) -> CheckpointError:
    """Return the error for a file that is not as it was written.  got: the fault in it."""
    return CheckpointError(
        f"run file {path}",
        got=got,
        want="the file as intarsia fit wrote it",
        fix="Restore it from a copy, or run the training again.",
    )
