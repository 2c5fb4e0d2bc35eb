"""Real photographs by name, for codecs and codes of patches: 28 of three packages.

sky = photographs()[0].pixels          # uint8 (H, W, 3), half as wide and high as its file
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_sample_images

from intarsia.core.checks import at_least
from intarsia.core.errors import DataError
from intarsia.data.decode import read_image
from intarsia.data.packages import obtain, pinned

PACKAGES = {
    "lomiri-wallpapers-16.04": "usr/share/backgrounds/*.jpg",
    "mate-backgrounds": "usr/share/backgrounds/mate/nature/*.jpg",
}


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph: its name, its pixels as uint8 (H, W, 3), and the package it comes from."""

    name: str
    pixels: np.ndarray
    source: str


def photographs(packages: Sequence[str] = tuple(PACKAGES), *, shrink: int = 2) -> list[Photograph]:
    """Load real photographs: two of scikit-learn, then the packages', by name.

    packages: keys of PACKAGES, which are downloaded. shrink: how many pixels of a side become one:
    the files are JPEGs: a codec would see their blocks.
    Raises: AssetError when a package is not available; ConfigError for shrink < 1.
    """
    at_least("shrink", shrink, 1)
    bundled = load_sample_images()
    files = [Path(name) for name in bundled["filenames"]]
    files_of_sources = [("scikit-learn", file) for file in sorted(files)]
    for name in packages:
        files_of_sources += [
            (name, file) for file in sorted(obtain(pinned(name)).glob(PACKAGES[name]))
        ]
    return [
        Photograph(file.stem, np.asarray(read_image(file).reduce(shrink)), source)
        for source, file in files_of_sources
    ]


def grey(pixels: np.ndarray) -> np.ndarray:
    """Compute the luma of a picture, 0 ... 255.  (H, W) or (H, W, 3) -> float64 (H, W)."""
    if pixels.ndim == 2:
        return pixels.astype(np.float64)
    return pixels[..., :3] @ np.array([0.299, 0.587, 0.114])


def patches(
    pictures: Sequence[np.ndarray], side: int, count: int, random: np.random.Generator
) -> np.ndarray:
    """Cut square patches out of grey pictures at random places, equally many of each picture.

    pictures: (H, W) each.
    Returns (count, side * side).
    Raises: DataError for a picture smaller than a patch.
    """
    for index, picture in enumerate(pictures):
        if min(picture.shape[:2]) < side:
            got, want = f"{picture.shape} of picture {index}", f"at least {side} px on each side"
            raise DataError("picture", got=got, want=want, fix="Take smaller patches.")
    cut_patches = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        top_edge, left_edge = (
            random.integers(0, length - side + 1) for length in picture.shape[:2]
        )
        cut_patches.append(
            picture[top_edge : top_edge + side, left_edge : left_edge + side].ravel()
        )
    return np.array(cut_patches, dtype=np.float64)
