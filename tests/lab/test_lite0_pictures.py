"""Pictures that prune Lite0: no picture is in two parts, and names give the right classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from intarsia.data.photographs import Photograph
from intarsia_lab.materials import lite0_pictures
from intarsia_lab.materials.lite0_pictures import Judged, class_of_stamp, pictures
from intarsia_lab.materials.stamps import Stamp


def stamp(picture: Path, topic: str = "animal") -> Stamp:
    return Stamp(picture, "", topic, {})


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stamps, photographs and a folder of labelled photographs, each of one colour of its own."""
    (tmp_path / "imagenet-sample-images").mkdir()
    monkeypatch.setenv("INTARSIA_DATA", str(tmp_path))
    colours = iter(range(1, 250))

    def square(file: Path) -> Path:
        Image.new("RGB", (300, 260), (next(colours), 0, 0)).save(file, "PNG")
        return file

    stamps = [stamp(square(tmp_path / f"{n}_thing.png")) for n in range(60)]
    stamps += [stamp(square(tmp_path / "gold-fish2.png"))]
    stamps += [stamp(square(tmp_path / "arrow.png"), "symbols")]
    for n in range(60):
        square(tmp_path / "imagenet-sample-images" / f"n01443537_{n}.JPEG")
    pixels = [np.full((260, 300, 3), next(colours), np.uint8) for _ in range(29)]
    monkeypatch.setattr(lite0_pictures, "stamps", lambda _: stamps)
    photographs = [Photograph(str(i), p, "") for i, p in enumerate(pixels)]
    monkeypatch.setattr(lite0_pictures, "photographs", lambda: photographs)
    monkeypatch.setattr(lite0_pictures, "CROPS", {"fit": 40, "choose": 10, "judge": 20})
    return tmp_path


def colours(pixels: torch.Tensor) -> set[int]:
    """The red of each picture's middle, 0 to 255."""
    middle = pixels[:, 0, pixels.shape[2] // 2, pixels.shape[3] // 2]
    return set((middle if pixels.dtype == torch.uint8 else (middle + 1) * 127.5).round().tolist())


def test_no_picture_is_in_two_parts(small: Path) -> None:
    fit, choose, judges = pictures()
    assert {*judges} == {"stamps", "crops", "photographs"}
    assert fit.dtype == torch.uint8 and fit.shape[1:] == (3, 256, 256)
    parts = [colours(fit), colours(choose.pixels), *(colours(j.pixels) for j in judges.values())]
    assert len(set().union(*parts)) == sum(len(part) for part in parts)
    assert all(j.pixels.shape[1:] == (3, 224, 224) for j in (choose, *judges.values()))


def test_what_has_a_class_judges(small: Path) -> None:
    judges: dict[str, Judged] = dict(pictures().judges)
    assert set(judges["photographs"].classes.tolist()) == {1}
    # a stamp with the name of a class judges, wherever its hash is
    assert judges["stamps"].classes.tolist().count(1) == 1
    assert set(judges["crops"].classes.tolist()) == {-1}


def test_without_the_folder_stamps_and_crops_are_all(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTARSIA_DATA", str(small / "nowhere"))
    assert {*pictures().judges} == {"stamps", "crops"}


@pytest.mark.parametrize(
    ("name", "number"), [("goldfish", 1), ("Gold_Fish-2", 1), ("zebras", 340), ("house", -1)]
)
def test_a_stamp_is_of_the_class_that_has_its_name(name: str, number: Any) -> None:
    assert class_of_stamp(stamp(Path(f"{name}.png"))) == number
