"""GICD: torchvision reads tiny sets in the layout of the published archives."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR100

from intarsia.core.errors import DataError
from intarsia.data import load_data
from intarsia_lab.materials import suites

from ...refusals import refused

Table = Callable[..., None]
Draw = Callable[..., None]


@pytest.fixture
def cifar(home: Path, table: Table, monkeypatch: pytest.MonkeyPatch) -> Path:
    """gicd/cifar100 with 3 classes, 9 and 6 images; torchvision's checksums are those of it."""
    folder = home / "gicd/cifar-100-python"
    folder.mkdir(parents=True)

    def write(name: str, content: dict[str, object]) -> str:
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    def batch(n: int, seed: int) -> dict[str, object]:
        pixels = np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)
        return {"data": pixels, "fine_labels": [i % 3 for i in range(n)]}

    names: dict[str, object] = {"fine_label_names": ["apple", "bear", "can"]}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", write("train", batch(9, 0))]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", write("test", batch(6, 1))]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": write("meta", names)})
    table("gicd/cifar100", classes=3, counts={"train": 9, "test": 6})
    return folder


@pytest.fixture
def aircraft(home: Path, draw: Draw, table: Table) -> Path:
    """gicd/aircraft with 2 variants of 4, 2 and 2 images."""
    folder = home / "gicd/fgvc-aircraft-2013b/data"
    variants = ("707-320", "DHC 8/100")  # names with blanks and slashes are theirs
    counts = {"train": 4, "val": 2, "test": 2}
    for seed, (part, n) in enumerate(counts.items()):
        names = [f"{seed}{i:06}" for i in range(n)]
        draw((folder / f"images/{name}.jpg" for name in names), seed=seed)
        lines = (f"{name} {variants[i % 2]}\n" for i, name in enumerate(names))
        (folder / f"images_variant_{part}.txt").write_text("".join(lines))
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")
    table("gicd/aircraft", classes=2, counts=counts)
    return folder


@pytest.fixture
def food(home: Path, draw: Draw, table: Table) -> Path:
    """gicd/food101 with 2 dishes of 5 and 2 images each."""
    folder = home / "gicd/food-101"
    (folder / "meta").mkdir(parents=True)
    for seed, (part, n) in enumerate({"train": 5, "test": 2}.items()):
        rows = {dish: [f"{dish}/{seed}{i}" for i in range(n)] for dish in ("waffles", "apple_pie")}
        paths = [folder / f"images/{name}.jpg" for names in rows.values() for name in names]
        draw(paths, seed=seed)
        (folder / f"meta/{part}.json").write_text(json.dumps(rows))
    table("gicd/food101", classes=2, counts={"train": 10, "test": 4})
    return folder


def test_the_table_is_the_publishers() -> None:
    found = {t.name: (t.classes, dict(t.counts)) for t in suites.suite("gicd").tasks}
    assert found == {
        "cifar100": (100, {"train": 50_000, "test": 10_000}),
        "aircraft": (100, {"train": 3_334, "val": 3_333, "test": 3_333}),
        "food101": (101, {"train": 101 * 750, "test": 101 * 250}),
    }


def test_cifar(cifar: Path) -> None:
    parts = suites.read("gicd/cifar100")
    assert parts["train"].classes == ("apple", "bear", "can")
    pixels = np.random.default_rng(1).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    assert np.array_equal(np.asarray(parts["test"].image(4)), pixels[4].transpose(1, 2, 0))
    data = load_data("gicd/cifar100", seed=0, val=3)  # val is cut out of train: none is published
    assert (len(data.train), len(data.val or ()), len(data.test)) == (6, 3, 6)
    assert data.record["published_parts"] == ["test", "train"]


def test_aircraft(aircraft: Path) -> None:
    parts = suites.read("gicd/aircraft")
    assert parts["val"].images[1] == aircraft / "images/1000001.jpg"
    assert parts["val"].label_of(1).endswith("1000001.jpg") and parts["val"].labels[1] == 1
    assert parts["test"].classes == ("707-320", "DHC 8/100")
    assert len(load_data("gicd/aircraft", seed=0).val or ()) == 2


def test_food(food: Path) -> None:
    parts = suites.read("gicd/food101")
    assert parts["train"].classes == ("apple_pie", "waffles")
    assert parts["train"].images[0] == food / "images/waffles/00.jpg"
    assert parts["train"].labels.tolist() == [1] * 5 + [0] * 5


@pytest.mark.parametrize("name", ["cifar", "aircraft", "food"])
def test_wrong_counts(name: str, request: pytest.FixtureRequest, table: Table, home: Path) -> None:
    request.getfixturevalue(name)
    spec = f"gicd/{ {'cifar': 'cifar100', 'food': 'food101'}.get(name, name) }".replace(" ", "")
    table(spec, counts={"train": 9, "val": 1, "test": 5})
    with pytest.raises(DataError, match="want train 9, val 1, test 5"):
        suites.read(spec)


def test_changed_bytes_are_found(cifar: Path) -> None:
    (cifar / "test").write_bytes(b"changed")
    with refused(
        DataError,
        got=RuntimeError,
    ):
        suites.read("gicd/cifar100")


def test_missing_files(aircraft: Path, food: Path) -> None:
    (aircraft / "images_variant_val.txt").unlink()
    with refused(DataError, what="gicd/aircraft", want="this file"):
        suites.read("gicd/aircraft")
    (food / "images/waffles/03.jpg").unlink()
    (food / "images/waffles/03.jpg").parent.joinpath("x").touch()
    with refused(DataError, what="pictures of gicd/food101, train"):
        suites.read("gicd/food101")


def test_a_line_torchvision_cannot_read(aircraft: Path) -> None:
    with (aircraft / "images_variant_test.txt").open("a") as file:
        file.write("3000000 Zeppelin\n")
    with refused(DataError, got="KeyError: 'Zeppelin'"):
        suites.read("gicd/aircraft")


def test_nothing_is_downloaded_unless_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR100, "download", lambda _self: pytest.fail("downloads"))
    for task in suites.suite("gicd").tasks:
        with pytest.raises(DataError, match="missing"):
            suites.read(f"gicd/{task.name}")
        with pytest.raises(DataError, match="not found"):
            task.read(home / "gicd")
