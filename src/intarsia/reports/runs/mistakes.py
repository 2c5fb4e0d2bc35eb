"""The pictures a model is most sure about and wrong: kept as thumbnails next to a run.

save_mistakes(run, data.test.image, metrics.logits, metrics.labels, data.classes)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...core.errors import CheckpointError, ConfigError, DataError
from ...core.files import read_json, writing
from ...core.reading import open_regular
from ...core.sealing import is_format

MISTAKES, LIST = "mistakes", "mistakes.json"
FORMAT = 1
SIDE = 160  # pixels; a thumbnail's longer side
LARGEST = 1_000_000  # bytes; no thumbnail of that size is that large

Images = Callable[[int], Image.Image]


@dataclass(frozen=True)
class Mistake:
    """Picture `index` of the evaluated part, its class, and the class it was taken for."""

    index: int
    true: str
    predicted: str
    confidence: float  # softmax probability of the wrong class, 0 ... 1
    picture: Path
    side: int = SIDE  # pixels of the thumbnail's longer side


@dataclass(frozen=True)
class Mistakes:
    """The worst `shown`, the most confident first, out of `wrong` mistakes among `n` pictures."""

    shown: tuple[Mistake, ...]
    wrong: int
    n: int


def worst(logits: Tensor, labels: Tensor, k: int) -> list[tuple[int, float]]:
    """Return (index, confidence) of the k most confident mistakes, the most confident first.

    Confidence is the softmax probability of the predicted class; of equal ones the first picture
    comes first. logits: (n, classes); labels: (n,).
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    wrong = (predicted != labels).nonzero()[:, 0].tolist()
    # Python's sort is stable: equal confidences stay in the set's order
    wrong.sort(key=lambda i: -float(confidence[i]))
    return [(i, float(confidence[i])) for i in wrong[:k]]


def save_mistakes(
    folder: Path | str,
    images: Images,
    logits: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    k: int = 24,
) -> Path:
    """Write the k most confident mistakes to `folder/mistakes/`: PNG thumbnails and mistakes.json.

    images: function from a picture's index to the picture, called for these k only. logits: (n,
      classes); labels: (n,). An older list in the folder is replaced as a whole. Returns the folder
      that was written.
    Raises: ConfigError for k < 1; DataError for logits, labels and classes that do not fit each
      other; TrainingError if the disk is full or cannot be written.
    """
    if k < 1:
        raise ConfigError("k", got=k, want="at least 1", fix="24 fill a page.")
    _check(logits, labels, classes)
    mistakes = worst(logits, labels, k)
    predicted = logits.argmax(1)
    wrong = int((predicted != labels).sum())
    lines = [
        {
            "index": i,
            "true": str(classes[int(labels[i])]),
            "predicted": str(classes[int(predicted[i])]),
            "confidence": confidence,
        }
        for i, confidence in mistakes
    ]
    target = Path(folder) / MISTAKES
    # the folder appears as a whole, or not at all
    with writing(target) as scratch:
        scratch.mkdir()
        for i, _ in mistakes:
            thumbnail(images(i)).save(scratch / file_name(i), optimize=True)
        content = {"format": FORMAT, "n": len(labels), "wrong": wrong, "mistakes": lines}
        (scratch / LIST).write_text(json.dumps(content, indent=1) + "\n")
    return target


def thumbnail(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """Return an RGB copy with a longer side of at most `side`; smaller pictures stay."""
    small = picture.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def file_name(index: int) -> str:
    """Return the file name of a picture's thumbnail."""
    return f"{index:06d}.png"


def read_mistakes(run: Path) -> Mistakes | None:
    """Read the mistakes that `save_mistakes` wrote into a run folder; None if there are none.

    Raises: CheckpointError for a list that is damaged or of another version, or a thumbnail that is
      missing or no picture.
    """
    folder = run / MISTAKES
    if not folder.is_dir():
        return None
    path = folder / LIST
    try:
        content = read_json(path)
        if not is_format(content["format"], FORMAT):
            raise _damaged(path, f"format {content['format']}")
        mistakes = tuple(_mistake(folder, line) for line in content["mistakes"])
        return Mistakes(mistakes, wrong=int(content["wrong"]), n=int(content["n"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _mistake(folder: Path, line: dict[str, Any]) -> Mistake:
    index, confidence = int(line["index"]), float(line["confidence"])
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence {confidence}")
    # the name follows from the index, so that a list cannot point outside its folder
    path = folder / file_name(index)
    if not path.is_file():
        raise _damaged(path, "no such file")
    # files may come from elsewhere: refuse a large one before it is decoded
    if (size := path.stat().st_size) > LARGEST:
        raise _damaged(path, f"{size} bytes")
    try:
        # PNG alone, and verified: a file in a run folder may come from anybody
        with open_regular(path) as raw, Image.open(raw, formats=["PNG"]) as picture:
            picture.verify()
            side = max(picture.size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    return Mistake(index, str(line["true"]), str(line["predicted"]), confidence, path, side)


def _damaged(path: Path, got: str) -> CheckpointError:
    return CheckpointError(
        f"mistakes in {path}",
        got=got,
        want=f"the files of save_mistakes, format {FORMAT}",
        fix=f"Delete the folder {path.parent} or write it again.",
    )


def _check(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    """Raise DataError unless logits (n, classes), labels (n,) and names (classes,) fit together."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(classes) != logits.shape[1]:
        got = f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}, {len(classes)} names"
        want = "logits (n, classes), labels (n,), one name per class"
        fix = "Pass the logits and labels of one evaluation, and its data's classes."
        raise DataError("predictions", got=got, want=want, fix=fix)
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= len(classes)):
        got, want = f"{int(labels.min())} ... {int(labels.max())}", f"0 ... {len(classes) - 1}"
        raise DataError("labels", got=got, want=want, fix="Count classes from 0.")
    # a sum that overflows would make the softmax useless, too
    if not bool(torch.isfinite(logits).all()) or not math.isfinite(float(logits.double().sum())):
        subject, fix = "logits", "Look for the reason before reading mistakes out of them."
        raise DataError(subject, got="values that are not finite", want="finite numbers", fix=fix)
