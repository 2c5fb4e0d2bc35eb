"""Squares of photographs: which, turned, blurred; other parts of them for testing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intarsia.data import photos


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ...]:
    """Two packages with four photographs: red grows to the right, green downwards."""
    monkeypatch.setattr(photos, "EACH", 20)
    y, x = np.mgrid[0:60, 0:90]
    for n, place in enumerate(
        ("one/usr/share/backgrounds", "two/usr/share/backgrounds/mate/nature")
    ):
        for m in range(2):
            file = tmp_path / place / f"{n}{m}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            blue = np.full_like(x, 60 * (2 * n + m))
            pixels = np.stack([x * 255 // 90, y * 255 // 60, blue], 2).astype(np.uint8)
            Image.fromarray(pixels).save(file, quality=95)
    return tmp_path / "one", tmp_path / "two"


def test_training_squares_are_of_the_left_half(folders: tuple[Path, ...]) -> None:
    images, labels, classes = photos.photo_origin(*folders)
    assert classes == ["00", "01", "10", "11"] and images.shape == (80, 112, 112, 3)
    red = images[..., 0].reshape(80, -1).mean(1)
    assert red[:40].max() < 128 < red[40:].min()
    assert np.bincount(labels[:40]).tolist() == np.bincount(labels[40:]).tolist() == [10] * 4


def test_a_square_is_turned_by_its_class(folders: tuple[Path, ...]) -> None:
    images, labels, _ = photos.photo_rotation(*folders)
    for image, label in zip(images, labels, strict=True):
        red = np.rot90(image[..., 0].astype(int), -label)  # turned back, red grows to the right
        assert red[:, -8:].mean() > red[:, :8].mean() + 5


def test_other_photographs_are_for_testing(folders: tuple[Path, ...]) -> None:
    images, labels, classes = photos.photo_blur(*folders)
    blue = (images[..., 2].reshape(80, -1).mean(1) / 60).round()
    assert set(blue[:40]) == {0, 2} and set(blue[40:]) == {1, 3}
    assert np.bincount(labels).tolist() == [16] * 5 and len(classes) == 5
