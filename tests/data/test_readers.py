"""Readers of the packages, each on a tiny folder in its publisher's format."""

from __future__ import annotations

import json
import lzma
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intarsia.data import readers


def _png(file: Path, size: tuple[int, int], colour: tuple[int, ...]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(file)


def test_mnist_is_fractions_of_255(tmp_path: Path) -> None:
    root = tmp_path / "package/src/digits"
    root.mkdir(parents=True)
    for digit in range(10):
        shades = [round(digit * 10 / 255, 4)] * 784 * (2 if digit == 3 else 1)
        (root / f"{digit}.json").write_text(json.dumps({"data": shades}))
    images, labels, classes = readers.mnist(tmp_path)
    assert images.shape == (11, 28, 28) and images.dtype == np.uint8
    assert labels == [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9] and classes[9] == "9"
    assert (images == np.asarray(labels)[:, None, None] * 10).all()


def test_clip_art_fills_a_white_square(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/openclipart/png"
    _png(root / "food/fruit/pear.png", (400, 200), (255, 0, 0, 255))
    _png(root / "animals/ghost.png", (8, 8), (0, 0, 0, 0))
    _png(root / "logos/left_out.png", (8, 8), (0, 0, 0))
    images, labels, classes = readers.openclipart(tmp_path, size=32)
    assert (classes, labels) == (["animals", "food"], [0, 1])
    assert (images[0] == 255).all()  # what is transparent is white
    assert (images[1, 8:24] == [255, 0, 0]).all() and (images[1, [0, -1]] == 255).all()


def test_clip_art_over_the_limit_is_never_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "usr/share/openclipart/png"
    _png(root / "food/small.png", (10, 10), (9, 9, 9))
    _png(root / "food/large.png", (11, 10), (9, 9, 9))
    monkeypatch.setattr(readers, "MAX_PIXELS", 100)
    assert len(readers.openclipart(tmp_path, size=8)[0]) == 1


def test_emoji_are_cropped_from_their_sheet(tmp_path: Path) -> None:
    sheet = Image.new("RGBA", (34 * 2, 34 * 2), (0, 0, 0, 255))  # the margin would show
    places = {(0, 0): (250, 0, 0, 255), (1, 0): (0, 250, 0, 255), (0, 1): (0, 0, 0, 0)}
    rows = []
    for n, ((x, y), colour) in enumerate(places.items()):
        sheet.paste(Image.new("RGBA", (32, 32), colour), (x * 34 + 1, y * 34 + 1))
        topic = "Rare" if n == 1 else "Common"
        rows.append({"category": topic, "has_img_google": True, "sheet_x": x, "sheet_y": y})
    rows.append({**rows[0], "has_img_google": False})
    (tmp_path / "package/img/google/sheets").mkdir(parents=True)
    sheet.save(tmp_path / "package/img/google/sheets/32.png")
    (tmp_path / "package/emoji.json").write_text(json.dumps(rows))
    images, labels, classes = readers.emoji(tmp_path, fewest=2)
    assert (classes, labels) == (["Common"], [0, 0])
    assert (images[0] == [250, 0, 0]).all() and (images[1] == 255).all()


def test_landsat_is_read_from_an_r_file(tmp_path: Path) -> None:
    n, bands = 5, np.arange(5 * 36).reshape(5, 36)
    head = b"RDX2\nX\n" + b"Satellite" + struct.pack(">ii", 0x313, 37)
    columns = b"".join(struct.pack(f">ii{n}d", 14, n, *bands[:, k]) for k in range(36))
    classes_column = struct.pack(f">ii{n}i", 0x30D, n, 1, 6, 2, 3, 1)
    file = tmp_path / "usr/lib/R/site-library/mlbench/data/Satellite.rda"
    file.parent.mkdir(parents=True)
    file.write_bytes(lzma.compress(head + columns + classes_column + b"the rest"))
    images, labels, classes = readers.landsat(tmp_path)
    assert labels == [0, 5, 1, 2, 0] and len(classes) == 6
    pixels = bands.reshape(5, 3, 3, 4)  # four bands for each pixel, row by row
    for rgb, band in enumerate((3, 1, 0)):
        np.testing.assert_array_equal(images[..., rgb], pixels[..., band])


def test_textile_keeps_its_publishers_classes(tmp_path: Path) -> None:
    root = tmp_path / "conformal_clip_data/data/textile_images/simulated"
    for name, n in {"nominal": 2, "local": 1, "global": 1}.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (6, 5), (i, i, i)).save(root / name / f"{i}.jpg")
    images, labels, classes = readers.textile(tmp_path)
    assert images.shape == (4, 5, 6, 3)
    assert [classes[i] for i in labels] == ["nominal", "nominal", "local", "global"]
