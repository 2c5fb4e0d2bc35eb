"""Squares cut out of photographs: which photograph, which way is up, how blurred.

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
Square = tuple[Image.Image, int]


def photo_origin(*folders: Path) -> Decoded:
    """112 px squares, by photograph: the left half is for training, the right one for testing."""
    files = _files(folders)
    rows: list[Square] = []
    for half in (0, 1):
        for label, file in enumerate(files):
            photo = _shrunk(file)
            middle = photo.width // 2
            part = photo.crop((middle * half, 0, middle * (1 + half), photo.height))
            rows += [(square, label) for square in _squares(part, 1, EACH // 2, (half, label))]
    return _decoded(rows, [file.stem for file in files])


def photo_rotation(*folders: Path) -> Decoded:
    """112 px squares turned by 0, 90, 180 or 270 degrees; other photographs for testing."""

    def turned(square: Image.Image, number: int) -> Square:
        return square.rotate(90 * (number % 4)), number % 4

    return _decoded(list(_apart(folders, 2, turned)), ["0", "90", "180", "270"])


def photo_blur(*folders: Path) -> Decoded:
    """112 px squares by the radius of their blur; other photographs for testing."""

    def blurred(square: Image.Image, number: int) -> Square:
        label = number % len(RADII)
        return square.filter(ImageFilter.GaussianBlur(RADII[label])), label

    return _decoded(list(_apart(folders, 1, blurred)), [f"{radius:g} px" for radius in RADII])


def _files(folders: tuple[Path, ...]) -> list[Path]:
    """The photographs, in order of their names."""
    found = [
        f
        for folder, where in zip(folders, PACKAGES.values(), strict=True)
        for f in folder.glob(where)
    ]
    return sorted(found, key=lambda file: file.name)


def _shrunk(file: Path) -> Image.Image:
    """With a shorter side of SHORT px, so that nothing of its first JPEG is left to see."""
    photo = read_image(file).convert("RGB")
    share = SHORT / min(photo.size)
    size = round(photo.width * share), round(photo.height * share)
    return photo.resize(size, Image.Resampling.LANCZOS)


def _squares(
    photo: Image.Image, shrink: int, count: int, seed: tuple[int, ...]
) -> Iterator[Image.Image]:
    """Squares at random places, `shrink` times as wide and then made smaller."""
    draw, wide = np.random.default_rng(seed), SIDE * shrink
    for _ in range(count):
        left, top = (int(draw.integers(0, side - wide + 1)) for side in photo.size)
        square = photo.crop((left, top, left + wide, top + wide))
        yield square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _apart(
    folders: tuple[Path, ...], shrink: int, made: Callable[[Image.Image, int], Square]
) -> Iterator[Square]:
    """Squares of every other photograph, then of those between."""
    files = _files(folders)
    for part in (files[::2], files[1::2]):
        for file in part:
            squares = _squares(_shrunk(file), shrink, EACH, (shrink, files.index(file)))
            for number, square in enumerate(squares):
                yield made(square, number)


def _decoded(rows: list[Square], classes: list[str]) -> Decoded:
    return np.stack([np.asarray(image) for image, _ in rows]), [y for _, y in rows], classes
