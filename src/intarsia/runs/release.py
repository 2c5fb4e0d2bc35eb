"""Write the model of a run in a form that needs nothing of this library, and check it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import AssetError, ConfigError, DataError
from ..core.folders import BLEND, describe_folder
from ..data import eval_transform
from ..data.images import ImageSet
from ..folders.out.blends import (
    BlendMember,
    export_blend_onnx,
    export_blend_program,
    export_blend_timm,
)
from ..folders.out.export import export_timm
from ..folders.out.graphs import export_onnx, export_program
from ..folders.out.int8 import export_onnx_int8
from ..hosts.attach.peft import is_peft
from ..hosts.folding.fold import fold
from .blending import open_blend
from .runs import PictureRun, RunOnPictures, open_pictures, pictures_to_score

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
    """Write the model of a run as "timm", "onnx" or "torch", and check its outputs.

    run: its folder, or a blend's. fold_it: first add the adapter's change to the weights. int8:
    "onnx" in 8 bits; its ranges are measured on training pictures, and it is compared with float32
    on validation (or else test) pictures. result: a line for each check.
    Raises: FoldError where no stock model has the same outputs; ExportError where the written one
    differs, or loses too much in int8.
    """
    if form == "timm" and not fold_it:
        subject, want = "--keep-adapter", "onnx or torch: timm knows no adapters"
        raise ConfigError(subject, got="--format timm", want=want, fix="Leave one of them out.")
    if (run / BLEND).is_file():
        return _release_blend(run, form, target, fold_it, int8, report, result)
    opened = open_pictures(run, as_trained=False)
    images = some_pictures(opened, report)
    # folded: the adapter's change is added to the weights, and the net is timm's own again
    model = stock_of(opened, images, result) if fold_it else opened.model
    # all writers take these
    export_options: Any = _options(opened, result) | {"preprocessing": opened.inputs}
    if int8:
        # ranges come from training pictures; they are judged on pictures that set none of them
        calibration, _ = spread_pictures(opened, "train", CALIBRATION, report)
        part = "val" if "val" in opened.record["record"]["data"]["parts"] else "test"
        judged, labels = spread_pictures(opened, part, VALIDATION, report)
        return export_onnx_int8(model, target, calibration, judged, labels, **export_options)
    if form == "timm":
        return export_timm(model, target, inputs=images, **export_options)
    return (export_onnx if form == "onnx" else export_program)(
        model, target, images=images, **export_options
    )


def _options(opened: RunOnPictures, result: Report) -> dict[str, Any]:
    """Return the keywords that all writers take.  result: gets a line for each check."""
    return {
        "classes": list(opened.classes),
        "several_labels": opened.several_labels,
        "report": result,
    }


def _release_blend(
    run: Path, form: str, target: Path, fold_it: bool, int8: bool, report: Report, result: Report
) -> Path:
    """Write a blend of runs, see `release`.  Raises: ConfigError for int8."""
    if int8:
        want, fix = "a single run", f"Export a member: {run / 'members' / '0'}."
        raise ConfigError("--int8", got=describe_folder(run), want=want, fix=fix)
    opened = open_blend(run, as_trained=False)
    pictures = member_pictures(opened, report)
    parts = zip(opened.members, opened.weights, opened.temperatures, pictures, strict=True)
    members = [
        BlendMember(
            stock_of(member, images, result) if fold_it else member.model,
            member.inputs,
            weight,
            temperature,
            images,
        )
        for member, weight, temperature, images in parts
    ]
    write = {"timm": export_blend_timm, "onnx": export_blend_onnx, "torch": export_blend_program}
    return write[form](members, target, **_options(opened, result))


def stock_of(opened: PictureRun, images: Tensor | None, result: Report) -> nn.Module:
    """Return the model with the adapter's change added to its weights, or the model if it has none.

    opened: the run; its adapter may be one of PEFT's. images: to compare the outputs on, None =
    noise.
    """
    if not is_peft(opened.model):
        return opened.model
    return fold(opened.model, inputs=images, report=result)


def some_pictures(opened: PictureRun, report: Report, count: int = PICTURES) -> Tensor | None:
    """Return `count` test pictures as a run's model takes them, (count, 3, H, W), or None."""
    return member_pictures(opened, report, count)[0]


def member_pictures(
    opened: RunOnPictures, report: Report, count: int = PICTURES
) -> list[Tensor | None]:
    """Return the same `count` test pictures as each member of a blend takes them.

    None instead if the data are gone.
    """
    try:
        images, rows = _spread(opened, "test", count, report)
    except (DataError, AssetError, LookupError) as error:
        report(f"The run's pictures cannot be read ({error}): outputs are compared on noise.")
        return [None for _ in opened.members]
    return [_transformed(images, rows, member) for member in opened.members]


def spread_pictures(
    opened: PictureRun, part: str, count: int, report: Report
) -> tuple[Tensor, Tensor]:
    """Return up to `count` pictures, evenly spread over a part of a run's data, and their labels.

    opened: the run. part: "train", "val" or "test". Pictures are as the model takes them, (n, 3, H,
    W).
    Raises: as `pictures_to_score`.
    """
    images, rows = _spread(opened, part, count, report)
    return _transformed(images, rows, opened), torch.from_numpy(images.labels[rows])


def _spread(
    opened: RunOnPictures, part: str, count: int, report: Report
) -> tuple[ImageSet, list[int]]:
    """Return a part of a run's data, and up to `count` places that are evenly spread over it."""
    images: ImageSet = pictures_to_score(opened, None, part, report)
    # every step-th picture: sets are often sorted by class
    step = max(1, len(images) // count)
    return images, [*range(0, min(len(images), step * count), step)]


def _transformed(images: ImageSet, rows: Sequence[int], member: PictureRun) -> Tensor:
    """Return pictures as a run's model takes them, (n, 3, H, W)."""
    transform: Any = eval_transform(member.inputs)
    return torch.stack([transform(images.image(i)) for i in rows])
