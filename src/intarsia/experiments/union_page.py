"""The page of a union of experts: pictures, answers, and which patches each expert takes."""

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
from ..hosts.swap.union_patches import taken_patches
from ..results.senses.page import Shown, write_patches
from ..train.evaluate import device_of


def patches_page(
    model: nn.Module,
    pictures: Picture | str | Sequence[Picture | str],
    out: str | Path,
    *,
    answers: Sequence[str] = (),
    inputs: InputConfig | None = None,
) -> Path:
    """Write a page of which patches each expert of a `UnionOfExperts` takes from some pictures.

    pictures: paths, Pillow images, or arrays (H, W, 3).  answers: what the model says of each; ""
    for nothing.  inputs: how the model takes pictures, None = as its own settings say.
    Raises: TargetError for a model without unions or without a grid of patches; DataError for a
    picture that cannot be read; MissingExtra without plotly or jinja2.
    """
    several: Any = [pictures] if isinstance(pictures, str | Picture) else list(pictures)
    inputs = inputs or input_config(model)
    transform = eval_transform(inputs)
    x = torch.stack([_ready(one, transform) for one in several])
    taken = taken_patches(model, x.to(device_of(model)))
    said = [*answers, *[""] * (len(several) - len(answers))]
    shown = [
        Shown(Path(one).name if isinstance(one, str | Path) else "", answer, _seen(row, inputs))
        for one, answer, row in zip(several, said, x, strict=True)
    ]
    return write_patches(out, shown, {path: part.numpy() for path, part in taken.items()})


def _ready(picture: Any, transform: Any) -> Tensor:
    if isinstance(picture, str | Path | bytes):
        found = Path(picture) if isinstance(picture, str) else picture
        return transform(read_image(found, side=side_of(transform)))
    return transform(to_rgb(picture))


def _seen(x: Tensor, inputs: InputConfig) -> Image.Image:
    """The picture that was read.  (3, H, W), normalised."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (inputs.mean, inputs.std))
    pixels = (x * std + mean).clamp(0, 1).mul(255).round().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy().astype(np.uint8))
