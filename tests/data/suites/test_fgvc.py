"""FGVC: VPT's JSON splits beside the pictures, with its published fractions of training data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from intarsia.core.errors import DataError
from intarsia.data import load_data
from intarsia_lab.materials import suites

from ...refusals import refused

Table = Callable[..., None]
COUNTS = {"train": 12, "val": 3, "test": 6}
IDS = (5, 2, 900)  # as in NABirds: neither from 0 nor contiguous nor in order


@pytest.fixture
def vpt(home: Path, draw: Callable[..., None], table: Table) -> Callable[..., Path]:
    """Make fgvc/`folder` with `images` below it, and the table of `task` for its numbers."""

    def make(task: str, folder: str, images: str) -> Path:
        root = home / "fgvc" / folder
        for seed, (part, n) in enumerate(COUNTS.items()):
            rows = {f"{IDS[i % 3]:03}.Bird one/{part} {i}.png": IDS[i % 3] for i in range(n)}
            draw((root / images / name for name in rows), seed=seed)
            (root / f"{part}.json").write_text(json.dumps(rows))
        table(f"fgvc/{task}", counts=COUNTS, classes=3)
        return root

    return make


@pytest.mark.parametrize(
    ("task", "folder", "images"),
    [
        ("cub", "CUB_200_2011", "images"),
        ("nabirds", "nabirds", "images"),
        ("flowers", "OxfordFlowers", "."),
        ("dogs", "StanfordDogs", "Images"),
        ("cars", "FGVC-cars", "."),
    ],
)
def test_each_set_in_its_layout(
    vpt: Callable[..., Path], task: str, folder: str, images: str
) -> None:
    root = vpt(task, folder, images)
    parts = suites.read(f"fgvc/{task}")
    assert {part: len(image_set) for part, image_set in parts.items()} == COUNTS
    assert parts["train"].classes == ("2", "5", "900")
    assert parts["test"].labels.tolist() == [1, 0, 2, 1, 0, 2]
    assert parts["val"].images[2] == root / images / "900.Bird one/val 2.png"
    data = load_data(f"fgvc/{task}", seed=0)
    assert (len(data.train), len(data.val or ()), len(data.test)) == (12, 3, 6)


def test_the_counts_are_those_of_vpt() -> None:
    counts = {t.name: (t.classes, *t.counts.values()) for t in suites.suite("fgvc").tasks}
    assert counts == {
        "cub": (200, 5394, 600, 5794),
        "nabirds": (555, 21536, 2393, 24633),
        "flowers": (102, 1020, 1020, 6149),
        "dogs": (120, 10800, 1200, 8580),
        "cars": (196, 7329, 815, 8041),
    }


def test_a_published_fraction_is_used(vpt: Callable[..., Path]) -> None:
    root = vpt("cub", "cub", "images")
    rows = json.loads((root / "train.json").read_text())
    small = dict(list(rows.items())[1:3])  # ids 2 and 900 only
    (root / "train_0.1.json").write_text(json.dumps(small))
    data = load_data("fgvc/cub", seed=0, fraction=0.1)
    assert [data.train.images[i] for i in range(2)] == [root / "images" / name for name in small]
    assert data.train.labels.tolist() == [0, 2]  # the labels of the whole training part
    assert len(data.val or ()) == 3 and len(data.test) == 6
    source = "FGVC, train_0.1.json, in place of train"
    assert data.record["kept"] == {"fraction": 0.1, "published": True, "from": source}
    assert data.record["parts"]["train"]["source"] == "FGVC, train_0.1.json"


def test_a_fraction_without_a_file_is_drawn(vpt: Callable[..., Path]) -> None:
    vpt("cub", "cub", "images")
    data = load_data("fgvc/cub", seed=0, fraction=0.25)
    assert data.train.counts() == {"2": 1, "5": 1, "900": 1}
    assert data.record["kept"] == {"fraction": 0.25, "from": "train"}


def test_with_train_and_val_joined_a_fraction_uses_or_replaces_both(
    vpt: Callable[..., Path],
) -> None:
    root = vpt("cub", "cub", "images")
    drawn = load_data("fgvc/cub@train+val", seed=0, fraction=0.4, val=0)
    assert drawn.train.counts() == {"2": 2, "5": 2, "900": 2}  # of 5 each: 4 and 1
    assert drawn.record["kept"] == {"fraction": 0.4, "from": "train and val"}
    rows = json.loads((root / "train.json").read_text())
    (root / "train_0.4.json").write_text(json.dumps(dict(list(rows.items())[:3])))
    published = load_data("fgvc/cub@train+val", seed=0, fraction=0.4, val=0)
    assert len(published.train) == 3
    assert published.record["kept"]["from"] == "FGVC, train_0.4.json, in place of train and val"


def test_a_picture_in_two_parts(vpt: Callable[..., Path]) -> None:
    root = vpt("cub", "cub", "images")
    (name, label), *_ = json.loads((root / "test.json").read_text()).items()
    rows = json.loads((root / "train.json").read_text())
    (root / "train_0.1.json").write_text(json.dumps({name: label}))
    with refused(DataError, got="1 path in both, as '005.Bird one/test 0.png'"):
        load_data("fgvc/cub", seed=0, fraction=0.1)
    (root / "train.json").write_text(json.dumps({**dict(list(rows.items())[1:]), name: label}))
    with refused(DataError, got="1 path in both, as '005.Bird one/test 0.png'"):
        suites.read("fgvc/cub")


def test_a_damaged_published_fraction_is_found(vpt: Callable[..., Path]) -> None:
    root = vpt("cub", "cub", "images")
    (root / "train_0.5.json").write_text('{"gone.png": 2}')
    with refused(DataError, what="pictures of fgvc/cub, 0.5 of train"):
        load_data("fgvc/cub", seed=0, fraction=0.5)
    (root / "train_0.5.json").write_text('{"gone.png": 3}')
    with refused(
        DataError, got="1 bad of 1:\n  entry 1 'gone.png: 3': label 3 is not one of the classes\n"
    ):
        load_data("fgvc/cub", seed=0, fraction=0.5)


def test_wrong_counts(vpt: Callable[..., Path], table: Table) -> None:
    vpt("dogs", "dogs", "Images")
    table("fgvc/dogs", counts=COUNTS | {"val": 4})
    with refused(DataError, what="images of fgvc/dogs"):
        suites.read("fgvc/dogs")


def test_wrong_classes(vpt: Callable[..., Path], table: Table) -> None:
    vpt("dogs", "dogs", "Images")
    table("fgvc/dogs", classes=120)
    with refused(DataError, what="classes of fgvc/dogs", got=3):
        suites.read("fgvc/dogs")


def test_an_id_that_train_does_not_have(vpt: Callable[..., Path]) -> None:
    root = vpt("cub", "cub", "images")
    rows = json.loads((root / "test.json").read_text()) | {"new.png": 7}
    (root / "test.json").write_text(json.dumps(rows))
    with refused(
        DataError, got="1 bad of 7:\n  entry 7 'new.png: 7': label 7 is not one of the classes\n"
    ):
        suites.read("fgvc/cub")


def test_missing_splits_and_pictures(vpt: Callable[..., Path], home: Path) -> None:
    root = vpt("cub", "CUB", "images")
    (root / "val.json").unlink()
    (root / "images").rename(root / "Images")
    with refused(DataError, what="fgvc/cub") as error:
        suites.read("fgvc/cub")
    assert str(error.value.got).split()[1:] == [str(root / "val.json"), str(root / "images")]
    with pytest.raises(DataError) as error:
        suites.read("fgvc/cars")
    assert str(home / "fgvc/cars/train.json") in str(error.value.got)
