"""Small folders of real image files, and small sets of noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from intarsia.data import ImageSet


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any
) -> None:
    """An empty cache folder for every test, but for those that use the real packages."""
    if not request.node.get_closest_marker("network"):
        monkeypatch.setenv("INTARSIA_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Make a picture of noise, another one for every seed."""

    def make(seed: int, size: tuple[int, int] = (10, 8)) -> Image.Image:
        width, height = size
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture(scope="session")
def noise_set() -> Callable[..., ImageSet]:
    """Make a set of `n` grey pictures of noise with balanced labels."""

    def make(n: int, classes: int = 3, *, seed: int = 0, size: int = 8) -> ImageSet:
        pixels = np.random.default_rng(seed).integers(0, 256, (n, size, size), dtype=np.uint8)
        labels = np.arange(n, dtype=np.int64) % classes
        return ImageSet("noise", pixels, labels, tuple(f"c{i}" for i in range(classes)))

    return make


@pytest.fixture
def make_folder(tmp_path: Path, picture: Callable[..., Image.Image]) -> Callable[..., Path]:
    """Make `root/part/class/NN.png`: `layout` maps "part/class" or "class" to a number of files."""

    def make(layout: dict[str, int], *, root: str = "photos") -> Path:
        folder = tmp_path / root
        for i, (path, n) in enumerate(layout.items()):
            (folder / path).mkdir(parents=True)
            for j in range(n):
                picture(1000 * i + j).save(folder / path / f"{j:02}.png")
        return folder

    return make
