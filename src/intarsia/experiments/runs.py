"""A finished run folder as a model again: to score pictures, and to say what they show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import CheckpointError, DataError, UnknownName
from ..core.modes import evaluating
from ..data import ImageSet, InputConfig, eval_transform, input_config, trunk_fingerprint
from ..data.decode import SUFFIXES, read_image
from ..data.folders import check_same_classes
from ..data.splits import read_data
from ..hosts import load
from ..results.runs import read_run
from ..results.runs.reading import need
from ..train import Metrics
from ..train import predict as predict_logits
from ..train.evaluate import device_of
from ..train.objectives import logits_of
from ..train.precision import autocast, cast_frozen, compute_dtype
from . import experiment as experiments
from .execute import held, model_of, pictures_of
from .experiment import Experiment

Report = Callable[[str], None]
PARTS = ("test", "val", "all", "train")  # the first that is there is scored
BATCH = 64


@dataclass(frozen=True)
class Opened:
    """A trained model, how its pictures must look, and the run it comes from."""

    model: nn.Module
    inputs: InputConfig
    classes: tuple[str, ...]
    experiment: Experiment
    record: Mapping[str, Any]


def open_run(folder: Path, *, as_trained: bool = True) -> Opened:
    """The model of a finished run.

    as_trained: its frozen weights in the type they were trained beside; False = float32.
    Raises: DataError or ConfigError for a folder that is no finished run of `intarsia fit`;
    CheckpointError for damaged files, or where the backbone is not the one of the run.
    """
    experiment = experiments.read(folder)
    record = read_run(folder).record
    classes = tuple(map(str, need(record, "record.data.classes", list, folder)))
    model = model_of(experiment.adapted, len(classes), experiment.training.seed)
    inputs = input_config(model)
    model = restored(model, folder, experiment, record, classes)
    if as_trained:
        cast_frozen(model, experiment.training.precision)
    return Opened(model.eval(), inputs, classes, experiment, record)


def restored(
    model: nn.Module,
    folder: Path,
    experiment: Experiment,
    record: Mapping[str, Any],
    classes: tuple[str, ...] | None = None,
) -> nn.Module:
    """The pretrained model with what the run has learned.

    Raises: CheckpointError for another pretrained model, or damaged files.
    """
    if (found := trunk_fingerprint(model)) != (want := need(record, "record.trunk", str, folder)):
        what, got = f"backbone {experiment.adapted.model!r} of {folder}", f"weights {found[:12]}"
        fix = "Use the version of timm and of the weights that run.json names."
        raise CheckpointError(what, got=got, want=f"{want[:12]}, those it was trained on", fix=fix)
    return load(model, folder, classes=classes)


def pictures_to_score(
    opened: Opened, data: str | None, part: str | None, report: Report
) -> ImageSet:
    """A part of the run's own data, or of other data with the same classes.

    Raises: UnknownName for a part that is not there; DataError for other classes.
    """
    if data is None:
        split = pictures_of(opened.experiment, report)
        found = {"train": split.train, "val": split.val, "test": split.test}
        parts = {name: images for name, images in found.items() if images is not None}
        check_unchanged(opened.experiment, opened.record, split.record)
    else:
        parts = read_data(data, progress=report)
    chosen = part or next(name for name in PARTS if name in parts)
    if chosen not in parts:
        raise UnknownName("part", chosen, parts)
    images = parts[chosen]
    if images.classes != opened.classes:
        wanted = ImageSet("run", [], images.labels[:0], opened.classes)
        check_same_classes({"the run": wanted, "the data": images})
    return images


def check_unchanged(
    experiment: Experiment, record: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Raises: DataError where the data are others than in training: parts would mix.

    record: of the run; now: that of its data as they are now.
    """
    then: Any = (record.get("record") or {}).get("data") or {}
    for part, about in then.get("parts", {}).items():
        if now["parts"].get(part, {}).get("sha256") != about.get("sha256"):
            raise DataError(
                f"{part} part of {experiment.pictures.data}",
                got="other data than the run had",
                want="the same, or what was trained on may be scored",
                fix="Restore the data, or name other data to score: intarsia evaluate RUN DATA.",
            )


def score(opened: Opened, images: ImageSet) -> Metrics:
    """The model's scores on a set."""
    logits, labels = predict_logits(opened.model, held(images, opened.inputs), batch_size=BATCH)
    return Metrics.of(logits, labels)


def scores_of(images: ImageSet, found: Metrics) -> dict[str, Any]:
    """Scores for JSON: of the set, and how many of each class were right."""
    right = found.logits.argmax(1) == found.labels
    per_class = {
        name: {"n": int(mine.sum()), "accuracy": float(right[mine].double().mean())}
        for label, name in enumerate(images.classes)
        if bool((mine := found.labels == label).any())
    }
    return {"set": images.name, "n": len(images), **found.scores(), "classes": per_class}


def picture_files(paths: Sequence[Path]) -> list[Path]:
    """The pictures named, and those anywhere below the folders named, in order.

    Raises: DataError for a path that is not there, or a folder without pictures.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        else:
            inside = [path] if path.exists() else []
        if not inside:
            got = "none" if path.is_dir() else "no such file"
            want = "a picture, or a folder with some"
            raise DataError(f"pictures in {path}", got=got, want=want, fix="Check the path.")
        found += inside
    return found


@dataclass(frozen=True)
class Prediction:
    """What a picture shows: classes with their probabilities, the likeliest first; or why not."""

    file: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    def row(self) -> dict[str, Any]:
        """For JSON and CSV."""
        name, probability = self.classes[0] if self.classes else ("", None)
        return {
            "file": str(self.file),
            "class": name,
            "probability": probability,
            "error": self.error,
        }


def predict(opened: Opened, files: Sequence[Path]) -> Iterator[Prediction]:
    """One prediction for each file, in order; a file that cannot be read gets its reason."""
    for first in range(0, len(files), BATCH):
        yield from _predict_batch(opened, files[first : first + BATCH])


def _predict_batch(opened: Opened, files: Sequence[Path]) -> Iterator[Prediction]:
    transform = eval_transform(opened.inputs)
    pictures: dict[Path, Tensor] = {}
    errors: dict[Path, str] = {}
    for file in files:
        try:
            pictures[file] = transform(read_image(file))
        except DataError as error:
            errors[file] = f"{error.got}; want {error.want}"
    shares = dict(zip(pictures, _shares(opened, list(pictures.values())), strict=True))
    for file in files:
        if file in errors:
            yield Prediction(file, error=errors[file])
        else:
            probability = shares[file]
            order = probability.argsort(descending=True).tolist()
            ranked = tuple((opened.classes[i], float(probability[i])) for i in order)
            yield Prediction(file, ranked)


@torch.no_grad()
def _shares(opened: Opened, pictures: list[Tensor]) -> Tensor:
    """Probabilities (n, classes) of n pictures."""
    if not pictures:
        return torch.zeros(0, len(opened.classes))
    device = device_of(opened.model)
    with evaluating(opened.model), autocast(device, compute_dtype(opened.model)):
        return logits_of(opened.model, torch.stack(pictures).to(device)).softmax(1).cpu()
