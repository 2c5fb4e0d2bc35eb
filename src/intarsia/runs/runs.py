"""A finished run on pictures as a model again: to score pictures, and to classify them."""

from __future__ import annotations

import abc
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checks import at_least
from ..core.errors import ConfigError, DataError, UnknownName
from ..core.modes import evaluating
from ..data import ImageSet, InputConfig, eval_transform, input_config
from ..data.decode import SUFFIXES, Picture, read_image, to_rgb
from ..data.folders import check_same_classes
from ..data.images import OnError
from ..data.loaders import side_of
from ..data.splits import read_data
from ..folders.saved import load
from ..hosts.anatomy.origin import resampled
from ..reports.runs import read_run
from ..reports.runs.reading import need
from ..train import Metrics, MultiLabel, Scores
from ..train import predict as predict_logits
from ..train.evaluation import device_of
from ..train.objectives import logits_of
from ..train.precision import autocast, cast_frozen, compute_dtype
from . import experiment as experiments
from .execute import held, model_of, pictures_of
from .experiment import Experiment
from .restoring import check_backbone

Report = Callable[[str], None]
PARTS = ("test", "val", "all", "train")  # the first that is there is scored
BATCH = 64


class RunOnPictures(abc.ABC):
    """A finished run on pictures, or a blend of several, to evaluate and predict with.

    model: trained, in evaluation mode; of a blend all members' models.  classes: their names, in
    the order of the logits.  experiment: as asked for; of a blend its first member's, with
    the data.  record: the contents of run.json.  members: the runs that answer together; of a
    single run itself.
    """

    model: nn.Module
    classes: tuple[str, ...]
    experiment: Experiment
    record: Mapping[str, Any]
    members: tuple[PictureRun, ...]

    @abc.abstractmethod
    def logits(self, pictures: Sequence[Picture]) -> tuple[Tensor, dict[int, str]]:
        """Compute logits (n, classes) of n pictures, with an error for each that cannot be read.

        pictures: files, bytes or images, in one batch. The errors are by place; rows there are NaN.
        """

    @abc.abstractmethod
    def logits_on(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Compute the logits (n, classes) of a set, and return its labels with them."""

    @property
    def several_labels(self) -> bool:
        data_record: Any = (self.record.get("record") or {}).get("data") or {}
        return bool(data_record.get("several_labels"))

    def evaluate(
        self,
        data: str | Path | None = None,
        part: str | None = None,
        report: Report = lambda _: None,
        on_error: OnError = "raise",
    ) -> dict[str, Any]:
        """Return the model's scores on a part of the run's own data, or on other data.

        data: other data, None = the run's own. part: "train", "val", "test" or, of other data,
        "all"; None = "test" where there is one. on_error: "skip" leaves damaged pictures of other
        data out, which is reported.
        Raises: UnknownName for a part that is not there; DataError for other classes, or own data
        that are not the training run's.
        """
        images = pictures_to_score(self, data, part, report, on_error)
        return scores_of(images, score(self, images))

    def predict(self, pictures: str | Picture | Sequence[str | Picture]) -> list[Prediction]:
        """Predict the class of each picture, in order; one that cannot be read has an `error`.

        pictures: paths of files, or of folders with pictures anywhere below; Pillow images; arrays
          (H, W, 3).
        Where a picture may have several labels, each label has a probability of its own.
        Raises: DataError for a path that is not there, or a folder without pictures.
        """
        several = [pictures] if isinstance(pictures, str | Picture) else pictures
        sources: list[Picture] = []
        for source in several:
            sources += picture_files([Path(source)]) if isinstance(source, str | Path) else [source]
        starts = range(0, len(sources), BATCH)
        return [p for first in starts for p in _predict(self, sources[first : first + BATCH])]


@dataclass(frozen=True)
class PictureRun(RunOnPictures):
    """A finished run on pictures.

    model: trained, in evaluation mode.  inputs: the size and scale of its pictures.
    classes: their names, in the order of the logits.  experiment: as asked for.  record: the
    contents of run.json.  several_labels: whether a picture may have several.
    """

    model: nn.Module
    inputs: InputConfig
    classes: tuple[str, ...]
    experiment: Experiment
    record: Mapping[str, Any]

    @property
    def members(self) -> tuple[PictureRun, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The run itself."""
        return (self,)

    @torch.no_grad()
    def logits(self, pictures: Sequence[Picture]) -> tuple[Tensor, dict[int, str]]:
        """Compute logits in one forward, NaN and an error for each picture that cannot be read."""
        transform = eval_transform(self.inputs)
        side = side_of(transform)
        ready: dict[int, Tensor] = {}
        errors: dict[int, str] = {}
        for i, picture in enumerate(pictures):
            try:
                encoded = isinstance(picture, Path | bytes)
                # a large JPEG is decoded near the size that is needed, which is faster
                ready[i] = transform(read_image(picture, side=side) if encoded else to_rgb(picture))
            except DataError as error:
                errors[i] = f"{error.got}; want {error.want}"
        rows = torch.full((len(pictures), len(self.classes)), math.nan)
        if ready:
            # one forward for all pictures that could be read
            batch = torch.stack(list(ready.values()))
            device = device_of(self.model)
            with evaluating(self.model), autocast(device, compute_dtype(self.model)):
                rows[list(ready)] = logits_of(self.model, batch.to(device)).float().cpu()
        return rows, errors

    def logits_on(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Compute the logits (n, classes) of a set in batches; return its labels with them."""
        return predict_logits(self.model, held(images, self.inputs), batch_size=BATCH)


def open_pictures(folder: Path, *, size: int | None = None, as_trained: bool = True) -> PictureRun:
    """Open a finished run on pictures.

    size: side of the pictures in px, None = the training's. as_trained: keep the frozen weights in
    the dtype of the training; False = float32.
    Raises: as `open_run` says.
    """
    experiment = experiments.read(folder)
    record = read_run(folder).record
    classes = tuple(map(str, need(record, "record.data.classes", list, folder)))
    model = model_of(experiment.adapted, len(classes), experiment.training.seed)
    # at the size of the training: another size changes the weights of its positions
    check_backbone(model, folder, experiment, record)
    if size not in (None, experiment.adapted.size):
        model = _of_size(size, model, experiment, len(classes))
    # read before the adapter is in: it may hide the model's own configuration
    inputs = input_config(model)
    model = load(model, folder, classes=classes)
    if as_trained:
        cast_frozen(model, experiment.training.precision)
    return PictureRun(model.eval(), inputs, classes, experiment, record)


def _of_size(size: int, model: nn.Module, experiment: Experiment, classes: int) -> nn.Module:
    """Return the backbone for another picture size; random weights are resampled to it."""
    at_least("size", size, 1, "For example: 224.")
    adapted = replace(experiment.adapted, size=size)
    resized = model_of(adapted, classes, experiment.training.seed)
    if not adapted.pretrained:
        try:
            # random weights are the training's; pretrained ones come in the new size
            resized.load_state_dict(resampled(model.state_dict(), resized))
        except RuntimeError as error:
            subject, got = f"picture size {size} of {adapted.model}", "layers of another shape"
            want, fix = "a size that leaves its layers as they are", "Use that of the training."
            raise ConfigError(subject, got=got, want=want, fix=fix) from error
    return resized


def pictures_to_score(
    opened: RunOnPictures,
    data: str | Path | None,
    part: str | None,
    report: Report,
    on_error: OnError = "raise",
) -> ImageSet:
    """Return a part of the run's own pictures, or of other data with the same classes.

    data: other data, None = its own. part: its name; None for the first of PARTS that there is.
    on_error: "skip" leaves pictures out that cannot be read, "raise" refuses them.
    Raises: UnknownName for a part that is not there; DataError for other classes.
    """
    if data is None:
        split = pictures_of(opened.experiment, report)
        sets = {"train": split.train, "val": split.val, "test": split.test}
        parts = {name: images for name, images in sets.items() if images is not None}
        check_unchanged(opened.experiment, opened.record, split.record)
    else:
        parts = read_data(data, on_error=on_error, progress=report)
    if data is None and len(opened.members) > 1:
        # another member may have trained on a part that is not the same for all
        common: Any = opened.record["record"]["data"]["parts"]
        parts = {name: images for name, images in parts.items() if name in common}
    part_name = part or next(name for name in PARTS if name in parts)
    if part_name not in parts:
        raise UnknownName("part", part_name, parts)
    images = parts[part_name]
    if data is not None and images.skipped:
        bad = len(images.skipped)
        report(f"{bad} of {bad + len(images)} pictures cannot be read and are left out.")
    # a softmax over classes and a yes or no for each label cannot be compared
    if images.several != opened.several_labels:
        single_words, several_words = "one class for each picture", "several labels a picture"
        got, want = (
            (several_words, single_words) if images.several else (single_words, several_words)
        )
        fix = "Name data like those the run was trained on."
        raise DataError(f"labels of {images.name!r}", got=got, want=want, fix=fix)
    if images.classes != opened.classes:
        # an empty set that has the run's classes, for the comparison and its message
        run_set = ImageSet("run", [], images.labels[:0], opened.classes)
        check_same_classes({"the run": run_set, "the data": images})
    return images


def check_unchanged(
    experiment: Experiment, record: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Check that a run's data are those it was trained on.  Raises: DataError."""
    then: Any = (record.get("record") or {}).get("data") or {}
    for part, part_record in then.get("parts", {}).items():
        if now["parts"].get(part, {}).get("sha256") != part_record.get("sha256"):
            raise DataError(
                f"{part} part of {experiment.pictures.data}",
                got="other data than the run had",
                want="the same, or what was trained on may be scored",
                fix="Restore the data, or name other data to score: intarsia evaluate RUN DATA.",
            )


def score(opened: RunOnPictures, images: ImageSet) -> Scores:
    """Return the scores of a run, or of a blend, on a set."""
    return scores_from(*opened.logits_on(images), several=images.several)


def scores_from(logits: Tensor, labels: Tensor, *, several: bool) -> Scores:
    """Return the scores of logits (n, classes).  several: a picture may have several labels."""
    return MultiLabel().scores(logits, labels) if several else Metrics.of(logits, labels)


def scores_of(images: ImageSet, scores: Scores) -> dict[str, Any]:
    """Return the scores on a set of pictures, and the scores of each class, as JSON stores them.

    A class has its number of pictures and its accuracy; where pictures have several labels, a label
    has precision and recall at probability one half.
    """
    if not isinstance(scores, Metrics):
        return {
            "set": images.name,
            "n": len(images),
            **scores.scores(),
            "classes": _labels(images, scores),
        }
    # one class for each picture: the highest logit is the answer
    right = scores.logits.argmax(1) == scores.labels
    per_class = {
        name: {"n": int(mine.sum()), "accuracy": float(right[mine].double().mean())}
        for label, name in enumerate(images.classes)
        if bool((mine := scores.labels == label).any())
    }
    return {"set": images.name, "n": len(images), **scores.scores(), "classes": per_class}


def _labels(images: ImageSet, scores: Scores) -> dict[str, dict[str, float]]:
    """Return n, precision and recall of each label by name, for pictures with several labels."""
    rows: dict[str, dict[str, float]] = {}
    # (pictures, labels); a logit above 0 predicts its label
    guess, truth = scores.predictions["logits"] > 0, scores.predictions["labels"] > 0
    for label, name in enumerate(images.classes):
        mine, guessed = truth[:, label], guess[:, label]
        # precision = right guesses / guesses, recall = right guesses / pictures with the label
        both, n = int((mine & guessed).sum()), int(mine.sum())
        precision, recall = both / max(1, int(guessed.sum())), both / max(1, n)
        rows[name] = {"n": n, "precision": precision, "recall": recall}
    return rows


def picture_files(paths: Sequence[Path]) -> list[Path]:
    """Return the picture files that are named, and those anywhere below the folders that are named.

    paths: files and folders; their order is kept.
    Raises: DataError for a path that is not there, or a folder without pictures.
    """
    pictures: list[Path] = []
    for path in paths:
        if os.path.isdir(path):  # unlike Path.is_dir, no error for a name that is too long
            files = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            inside = sorted(p for p in files if p.is_file())
        else:
            inside = [path] if os.path.exists(path) else []
        if not inside:
            got = "none" if os.path.isdir(path) else "no such file"
            want = "a picture, or a folder with some"
            raise DataError(f"pictures in {path}", got=got, want=want, fix="Check the path.")
        pictures += inside
    return pictures


@dataclass(frozen=True)
class Prediction:
    """The classes of a picture with their probabilities, the likeliest first; or the error.

    file: None for a picture that came from no file.  labels: those with a probability above one
    half, where a picture may have several; else None.
    """

    file: Path | None
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    labels: tuple[str, ...] | None = None

    def row(self) -> dict[str, Any]:
        """Return the prediction as a row for JSON and CSV; several labels are joined as "a;b"."""
        if self.labels is not None:
            share = dict(self.classes)
            return {
                "file": str(self.file or ""),
                "labels": ";".join(self.labels),
                "probabilities": ";".join(f"{share[name]:.6f}" for name in self.labels),
                "error": self.error,
            }
        name, probability = self.classes[0] if self.classes else ("", None)
        return {
            "file": str(self.file or ""),
            "class": name,
            "probability": probability,
            "error": self.error,
        }


def _predict(opened: RunOnPictures, pictures: Sequence[Picture]) -> Iterator[Prediction]:
    """Yield each picture's prediction, in order, or the error of an unreadable one."""
    logits, errors = opened.logits(pictures)
    # probabilities, by label if several apply
    shares = logits.sigmoid() if opened.several_labels else logits.softmax(1)
    for i, picture in enumerate(pictures):
        file = picture if isinstance(picture, Path) else None
        if i in errors:
            yield Prediction(file, error=errors[i], labels=() if opened.several_labels else None)
        else:
            # the likeliest class comes first
            order = shares[i].argsort(descending=True).tolist()
            ranked = tuple((opened.classes[c], float(shares[i][c])) for c in order)
            likely = tuple(name for name, share in ranked if share > 0.5)
            yield Prediction(file, ranked, labels=likely if opened.several_labels else None)
