"""Squares cut out of photographs, labelled by photograph, rotation or blur.

Squares for training and for testing come from two halves of each photograph, or from other ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from intarsia.data.decode import read_image
from intarsia.data.decoded import Decoded
from intarsia.data.photographs import PACKAGES

SIDE = 112  # px of a square
SHORT = 4 * SIDE  # px of a photograph's shorter side, once it is shrunk
EACH = 80  # squares of a photograph
RADII = (0.0, 0.7, 1.4, 2.1, 2.8)  # px of the blur
LabelledSquare = tuple[Image.Image, int]


def photo_origin(*folders: Path) -> Decoded:
    """Make a data set of 112 px squares; their class is the photograph that they were cut from.

    Squares of their left halves are for training, of the right ones for testing.
    """
    files = _photograph_files(folders)
    rows: list[LabelledSquare] = []
    # half 0 is for training, and so comes first
    for half in (0, 1):
        for label, file in enumerate(files):
            photo = _read_shrunk(file)
            # Two halves, so that no pixel is in both parts.
            middle = photo.width // 2
            part = photo.crop((middle * half, 0, middle * (1 + half), photo.height))
            squares = _random_squares(part, shrink=1, count=EACH // 2, seed=(half, label))
            rows += [(square, label) for square in squares]
    return _as_decoded(rows, [file.stem for file in files])


def photo_rotation(*folders: Path) -> Decoded:
    """Make a data set of 112 px squares of photographs; the class is a rotation's angle."""

    def turned(square: Image.Image, number: int) -> LabelledSquare:
        return square.rotate(90 * (number % 4)), number % 4

    # twice as much of a photograph in a square as for its blur: enough to tell up from down
    squares = _squares_by_part(folders, turned, shrink=2)
    return _as_decoded(list(squares), ["0", "90", "180", "270"])


def photo_blur(*folders: Path) -> Decoded:
    """Make a data set of 112 px squares cut from photographs; the class is the radius of a blur."""

    def blurred(square: Image.Image, number: int) -> LabelledSquare:
        label = number % len(RADII)
        return square.filter(ImageFilter.GaussianBlur(RADII[label])), label

    squares = _squares_by_part(folders, blurred, shrink=1)
    return _as_decoded(list(squares), [f"{radius:g} px" for radius in RADII])


def _photograph_files(folders: tuple[Path, ...]) -> list[Path]:
    files = [
        f
        for folder, pattern in zip(folders, PACKAGES.values(), strict=True)
        for f in folder.glob(pattern)
    ]
    return sorted(files, key=lambda file: file.name)


def _read_shrunk(file: Path) -> Image.Image:
    """Read a photograph, shrunk to a shorter side of SHORT px, at which JPEG artefacts are gone."""
    photo = read_image(file).convert("RGB")
    share = SHORT / min(photo.size)
    size = round(photo.width * share), round(photo.height * share)
    return photo.resize(size, Image.Resampling.LANCZOS)


def _random_squares(
    photo: Image.Image, *, shrink: int, count: int, seed: tuple[int, ...]
) -> Iterator[Image.Image]:
    """Yield `count` squares of SIDE px from random places of a photograph."""
    # a square is cut out with `shrink` times SIDE px, and shrunk to SIDE
    generator, width = np.random.default_rng(seed), SIDE * shrink
    for _ in range(count):
        left_edge, top_edge = (int(generator.integers(0, side - width + 1)) for side in photo.size)
        square = photo.crop((left_edge, top_edge, left_edge + width, top_edge + width))
        yield square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _squares_by_part(
    folders: tuple[Path, ...],
    transform: Callable[[Image.Image, int], LabelledSquare],
    *,
    shrink: int,
) -> Iterator[LabelledSquare]:
    """Yield squares of every other photograph (training), then of those between (testing)."""
    files = _photograph_files(folders)
    for part in (files[::2], files[1::2]):
        for file in part:
            seed = shrink, files.index(file)
            squares = _random_squares(_read_shrunk(file), shrink=shrink, count=EACH, seed=seed)
            for number, square in enumerate(squares):
                yield transform(square, number)


def _as_decoded(rows: list[LabelledSquare], classes: list[str]) -> Decoded:
    """Stack squares and labels as the reader of a named set returns them."""
    return np.stack([np.asarray(image) for image, _ in rows]), [y for _, y in rows], classes
