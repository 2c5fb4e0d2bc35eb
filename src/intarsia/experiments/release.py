"""Write the model of a run in a form that needs nothing of this library, and check it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import AssetError, ConfigError, DataError
from ..data import eval_transform
from ..data.images import ImageSet
from ..hosts import export_onnx, export_onnx_int8, export_program, export_timm, fold
from ..hosts.attach.peft import has_adapter
from .runs import PictureRun, open_pictures, pictures_to_score

Report = Callable[[str], None]
PICTURES = 8  # on which the outputs are compared
CALIBRATION, VALIDATION = 100, 500  # at most so many set the ranges of int8, and judge it


def release(
    run: Path,
    form: str,
    target: Path,
    *,
    fold_it: bool,
    int8: bool = False,
    report: Report,
    result: Report,
) -> Path:
    """Fold the model of a run, unless told not to, and write it as "timm", "onnx" or "torch".

    int8: of "onnx": in 8 bits, with ranges of the run's training pictures, compared with float32 on
      its validation pictures, or else those of the test part.  result: gets what the checks found,
      a line each.
    form: "timm", "onnx" or "torch"; fold_it: add the adapter's change to the weights before.
    Raises: FoldError where no stock model says the same; ExportError where the written one differs,
    or loses too much in int8.
    """
    if form == "timm" and not fold_it:
        subject, want = "--keep-adapter", "onnx or torch: timm knows no adapters"
        raise ConfigError(subject, got="--format timm", want=want, fix="Leave one of them out.")
    opened = open_pictures(run, as_trained=False)
    images = some_pictures(opened, report)
    # folded: the adapter's change is added to the weights, and the net is timm's own again
    model = stock_of(opened, images, result) if fold_it else opened.model
    export_options: Any = {
        "classes": list(opened.classes),
        "preprocessing": opened.inputs,
        "report": result,
    }
    export_options["several_labels"] = opened.several_labels
    if int8:
        # ranges come from training pictures; they are judged on pictures that set none of them
        calibration, _ = _spread(opened, "train", CALIBRATION, report)
        part = "val" if "val" in opened.record["record"]["data"]["parts"] else "test"
        judged, labels = _spread(opened, part, VALIDATION, report)
        return export_onnx_int8(model, target, calibration, judged, labels, **export_options)
    if form == "timm":
        return export_timm(model, target, inputs=images, **export_options)
    return (export_onnx if form == "onnx" else export_program)(
        model, target, images=images, **export_options
    )


def stock_of(opened: PictureRun, images: Tensor | None, result: Report) -> nn.Module:
    """Return the folded model, of PEFT's methods too; without an adapter it is stock already."""
    if not has_adapter(opened.model):
        return opened.model
    return fold(opened.model, inputs=images, report=result)


def some_pictures(opened: PictureRun, report: Report, count: int = PICTURES) -> Tensor | None:
    """Return `count` test pictures as the model sees them; None if the data are gone."""
    try:
        return _spread(opened, "test", count, report)[0]
    except (DataError, AssetError, LookupError) as error:
        report(f"The run's pictures cannot be read ({error}): outputs are compared on noise.")
        return None


def _spread(opened: PictureRun, part: str, count: int, report: Report) -> tuple[Tensor, Tensor]:
    """Return up to `count` pictures from all over a part as the model sees them, and their labels.

    Raises: as `pictures_to_score`.
    """
    images: ImageSet = pictures_to_score(opened, None, part, report)
    transform: Any = eval_transform(opened.inputs)
    # every step-th picture: sets are often sorted by class
    step = max(1, len(images) // count)
    rows = range(0, min(len(images), step * count), step)
    labels = torch.from_numpy(images.labels[list(rows)])
    return torch.stack([transform(images.image(i)) for i in rows]), labels
