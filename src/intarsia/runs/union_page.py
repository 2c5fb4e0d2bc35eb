"""The page of predictions: pictures, answers, and which patches each expert of a union takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..data import InputConfig, eval_transform, input_config
from ..data.decode import Picture, read_image, to_rgb
from ..data.loaders import side_of
from ..senses.report.page import Shown, write_pictures
from ..sparse.swap.union_patches import has_unions, taken_patches
from ..train.evaluation import device_of


def patches_page(
    model: nn.Module,
    pictures: Picture | str | Sequence[Picture | str],
    out: str | Path,
    *,
    answers: Sequence[str] = (),
    inputs: InputConfig | None = None,
) -> Path:
    """Write a page of the patches that each expert of a `UnionOfExperts` takes from some pictures.

    pictures: paths, Pillow images, or arrays (H, W, 3). out: the file. answers: what the model says
    of each; "" for nothing. inputs: size and normalisation of pictures, None = as the model's
    settings say.
    Raises: TargetError for a model without unions or without a grid of patches; DataError for a
    picture that cannot be read.
    """
    several: Any = [pictures] if isinstance(pictures, str | Picture) else list(pictures)
    inputs = inputs or input_config(model)
    x = _read(several, inputs)
    patches = taken_patches(model, x.to(device_of(model)))
    # the page has each picture at the size that the model read
    items = _shown(several, answers, x, inputs)
    return write_pictures(out, items, {path: part.numpy() for path, part in patches.items()})


def answers_page(
    model: nn.Module,
    pictures: Sequence[Path],
    out: str | Path,
    *,
    answers: Sequence[str],
    inputs: InputConfig,
) -> Path:
    """Write a page of pictures, as the model reads them, with its answer to each.

    A model with experts over patches gets the page that shows them.
    Raises: DataError for a picture that cannot be read.
    """
    if has_unions(model):
        return patches_page(model, pictures, out, answers=answers, inputs=inputs)
    x = _read(pictures, inputs)
    return write_pictures(out, _shown(pictures, answers, x, inputs))


def _read(pictures: Sequence[Any], inputs: InputConfig) -> Tensor:
    """Return the pictures as the model takes them, (B, 3, H, W), normalised."""
    transform = eval_transform(inputs)
    return torch.stack([_transformed(picture, transform) for picture in pictures])


def _shown(
    pictures: Sequence[Any], answers: Sequence[str], x: Tensor, inputs: InputConfig
) -> list[Shown]:
    """Return each picture of the page: its name, the answer, and what the model reads."""
    # pictures without an answer have an empty one
    answers = [*answers, *[""] * (len(pictures) - len(answers))]
    names = [Path(p).name if isinstance(p, str | Path) else "" for p in pictures]
    rows = zip(names, answers, x, strict=True)
    return [Shown(name, answer, _as_read(row, inputs)) for name, answer, row in rows]


def _transformed(picture: Any, transform: Any) -> Tensor:
    """Return a picture, (3, H, W), as a model's transform makes it."""
    if isinstance(picture, str | Path | bytes):
        source = Path(picture) if isinstance(picture, str) else picture
        return transform(read_image(source, side=side_of(transform)))
    return transform(to_rgb(picture))


def _as_read(x: Tensor, inputs: InputConfig) -> Image.Image:
    """Return a normalised tensor (3, H, W) as a picture again, as the model reads it."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (inputs.mean, inputs.std))
    # undo the normalisation: what the model read, in 0 ... 255
    pixels = (x * std + mean).clamp(0, 1).mul(255).round().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy().astype(np.uint8))
