"""Pictures for pruning Lite0 without labels: some fit, some choose the recipe, the others judge.

No picture, and no photograph that crops are of, is in two parts:

- *fit*: labels are not looked at.
- *choose*: by these alone rates, sizes, views and densities were chosen.
- *judges*: looked at once, with the final recipe. Stamps of a quarter of all names and all that
  are named like a class of ImageNet; crops of nine photographs; and, where the folder
  `imagenet-sample-images` is below `$INTARSIA_DATA`, half of its 1,000 photographs, one for each
  class. They are of ImageNet's training part, by which Lite0 itself was trained: its accuracy on
  them is too high, and the difference of two nets is what counts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from intarsia.data.decode import read_image
from intarsia.data.photographs import photographs

from .lite0 import PHOTOGRAPHS, SIDE, crops
from .stamps import Stamp, stamps
from .suites.reading import home

STORED = 256  # px of a side of the pictures that fit; views are cut from them
MARGIN = (STORED - SIDE) // 2
CROPS = {"fit": 300, "choose": 50, "judge": 150}
CHOOSING = 3  # photographs with crops that choose the recipe
LABELLED = "imagenet-sample-images"
UNKNOWN = -1  # class of a picture that has none


class Judged(NamedTuple):
    """Pictures (n, 3, 224, 224), -1 to 1, and the class of each among ImageNet's, -1 = unknown."""

    pixels: Tensor
    classes: Tensor


class PictureParts(NamedTuple):
    """The parts: `fit` as uint8 (n, 3, 256, 256) in random order, what chooses, and what judges."""

    fit: Tensor
    choose: Judged
    judges: Mapping[str, Judged]


def pictures(seed: int = 0) -> PictureParts:
    """Return all parts.  seed: of the crops and of the order of the pictures that fit."""
    draw = torch.Generator().manual_seed(seed)
    sources = {"stamps": _stamps(), "crops": _crops(draw)}
    if folder := labelled_folder():
        sources["photographs"] = _photographs(folder)
    fit = torch.cat([source["fit"].pixels for source in sources.values()])
    choose = [source["choose"] for source in sources.values()]
    return PictureParts(
        fit[torch.randperm(len(fit), generator=draw)],
        Judged(*(torch.cat(tensors) for tensors in zip(*choose, strict=True))),
        {name: source["judge"] for name, source in sources.items()},
    )


def normalised(pixels: Tensor) -> Tensor:
    """Return pixels as Lite0 reads them, -1 to 1.  pixels: uint8."""
    return pixels.float() / 127.5 - 1


def labelled_folder() -> Path | None:
    """Return the folder of photographs with classes, None if it does not exist."""
    folder = home() / LABELLED
    return folder if folder.is_dir() else None


def class_of_stamp(stamp: Stamp) -> int:
    """Return the class of ImageNet that a stamp is named after, -1 for none."""
    return _classes().get(_letters(stamp.name), UNKNOWN)


@cache
def _classes() -> Mapping[str, int]:
    """Return the number of each class, by the letters of its names."""
    info = ImageNetInfo()
    # of two classes of one name, as the two cranes, the first
    return {
        _letters(name): number
        for number in reversed(range(info.num_classes()))
        for name in info.index_to_description(number).split(",")
    }


def _letters(name: str) -> str:
    """Return a name's letters, without a plural s."""
    return re.sub("[^a-z]", "", name.lower()).removesuffix("s")


def _part(name: str, choose: int, judge: int) -> str:
    """Return the part of a picture by a hash of its name."""
    number = hashlib.sha256(name.encode()).digest()[0]
    return "judge" if number < judge else "choose" if number < judge + choose else "fit"


def _stamps() -> dict[str, Judged]:
    """Return Tux Paint's stamps by part, each on a white square; symbols are left out."""
    rows: dict[str, list[tuple[Tensor, int]]] = {"fit": [], "choose": [], "judge": []}
    for stamp in (s for s in stamps(lambda _: None) if s.topic != "symbols"):
        number = class_of_stamp(stamp)
        # `late` is the first quarter of the same hash
        part = "judge" if number != UNKNOWN else _part(stamp.name, 24, 64)
        side = STORED if part == "fit" else SIDE
        picture = read_image(stamp.picture)
        square = ImageOps.pad(picture, (side, side), Image.Resampling.LANCZOS, "white")
        rows[part].append((_pixels(square), number))
    return {part: _judged(part, content) for part, content in rows.items()}


def _photographs(folder: Path) -> dict[str, Judged]:
    """Return photographs of ImageNet by part."""
    numbers = {name: number for number, name in enumerate(ImageNetInfo().label_names())}
    rows: dict[str, list[tuple[Tensor, int]]] = {"fit": [], "choose": [], "judge": []}
    for file in sorted(folder.glob("n*_*.JPEG")):
        part = _part(file.stem, 24, 128)
        # the middle, as Lite0 is judged: 256 px, and 224 of them are read
        square = ImageOps.fit(read_image(file), (STORED, STORED), Image.Resampling.BICUBIC)
        pixels = _pixels(square)
        if part != "fit":
            pixels = pixels[:, MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE]
        rows[part].append((pixels, numbers[file.stem.partition("_")[0]]))
    return {part: _judged(part, content) for part, content in rows.items()}


def _crops(draw: torch.Generator) -> dict[str, Judged]:
    """Return crops by part, each photograph's in one of them.  draw: places and photographs."""
    images = [torch.tensor(p.pixels).permute(2, 0, 1) for p in photographs()]
    order = torch.randperm(len(images), generator=draw).tolist()
    ends = PHOTOGRAPHS - CHOOSING, PHOTOGRAPHS
    numbers = {"fit": order[: ends[0]], "choose": order[slice(*ends)], "judge": order[ends[1] :]}
    parts: dict[str, Judged] = {}
    for part, indices in numbers.items():
        side = STORED if part == "fit" else SIDE
        squares = crops([images[i] for i in indices], CROPS[part], draw, side=side)
        if part == "fit":
            squares = ((squares + 1) * 127.5).round().to(torch.uint8)
        parts[part] = Judged(squares, torch.full((len(squares),), UNKNOWN))
    return parts


def _pixels(square: Image.Image) -> Tensor:
    """Return a picture's pixels, uint8 (3, H, W)."""
    return torch.tensor(np.asarray(square)).permute(2, 0, 1)


def _judged(part: str, rows: Sequence[tuple[Tensor, int]]) -> Judged:
    """Return pictures of one size with their classes; those that fit stay uint8."""
    pixels = torch.stack([pixels for pixels, _ in rows])
    classes = torch.tensor([number for _, number in rows])
    return Judged(pixels if part == "fit" else normalised(pixels), classes)
