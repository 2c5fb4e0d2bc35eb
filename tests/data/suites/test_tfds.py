"""VTAB-1k from `tensorflow-datasets`, which a stand-in replaces here."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from intarsia.core.errors import DataError, MissingExtra
from intarsia.data import load_data
from intarsia_lab.materials import suites
from intarsia_lab.materials.suites import tfds

from ...refusals import refused

Example = dict[str, Any]


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Put a `tensorflow_datasets` in place that serves {TFDS part: examples}; what was built."""

    def install(parts: dict[str, list[Example]]) -> list[str]:
        built: list[str] = []
        skip = object()

        class Builder:
            info = SimpleNamespace(
                splits={k: SimpleNamespace(num_examples=len(v)) for k, v in parts.items()}
            )

            def as_dataset(self, *, split: str, shuffle_files: bool, decoders: Any) -> Any:
                assert not shuffle_files and decoders == {"image": skip}
                name, first, last = re.fullmatch(r"(\w+)(?:\[(\d*%?):(\d*)\])?", split).groups()  # pyright: ignore
                rows = parts[name]
                if first and first.endswith("%"):
                    first = len(rows) * int(first[:-1]) // 100
                return rows[int(first or 0) : int(last or len(rows))]

        def builder(name: str, *, data_dir: str) -> Builder:
            built.append(f"{name} in {data_dir}")
            return Builder()

        def as_numpy(rows: list[Example]) -> Iterator[Example]:
            yield from rows

        fake = SimpleNamespace(
            builder=builder, as_numpy=as_numpy, decode=SimpleNamespace(SkipDecoding=lambda: skip)
        )
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
        return built

    return install


@pytest.fixture
def prepared(home: Path) -> Callable[[str], Path]:
    """Leave the file that says a TFDS data set is prepared."""

    def make(where: str) -> Path:
        folder = home / "vtab-1k" / where
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
        return home / "vtab-1k"

    return make


# VTAB's own tests state these numbers: TFDS part `train` -> first of val200, first of test
@pytest.mark.parametrize(
    ("task", "images", "val", "test"),
    [
        ("cifar100", 50_000, "train[45000:45200]", "test"),
        ("caltech101", 3_060, "train[2754:2954]", "test"),
        ("oxford_iiit_pet", 3_680, "train[2944:3144]", "test"),
        ("svhn", 73_257, "train[65931:66131]", "test"),
        ("eurosat", 27_000, "train[16200:16400]", "train[21600:]"),
        ("resisc45", 31_500, "train[18900:19100]", "train[25200:]"),
        ("clevr_count", 70_000, "train[63000:63200]", "validation"),
        ("dsprites_loc", 737_280, "train[589824:590024]", "train[663552:]"),
        ("smallnorb_azi", 24_300, "test[:200]", "test[50%:]"),
        ("sun397", 76_128, "validation[:200]", "test"),
    ],
)
def test_published_slices(task: str, images: int, val: str, test: str) -> None:
    expected = {"train": "train[:800]", "val": val, "test": test}
    assert tfds.SOURCES[task].slices(images) == expected
    if test.startswith("train["):
        counts = suites.suite("vtab-1k").task(task).counts
        assert images - int(test[6:-2]) == counts["test"]


def test_every_task_has_a_source() -> None:
    assert list(tfds.SOURCES) == [t.name for t in suites.suite("vtab-1k").tasks]


def _bin_naive(value: float, edges: list[float]) -> int:
    """The last edge that is below the value, as the published code finds it."""
    return max(i for i, edge in enumerate(edges) if edge - value < 0)


DEPTHS = st.lists(st.floats(0.5, 60, width=32), min_size=3, max_size=10)


@given(depths=DEPTHS, on=st.sampled_from([8.0, 8.5, 9.0, 9.5, 10.0]))
def test_clevr_labels(depths: list[float], on: float) -> None:
    for values in (depths, [on, 30.0, 40.0]):
        coords = np.array([[0, 0, d] for d in values], np.float32)
        example = {"objects": {"pixel_coords": coords, "size": np.zeros(len(values), int)}}
        edges = [0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0]
        assert tfds.SOURCES["clevr_dist"].label(example) == _bin_naive(coords[:, 2].min(), edges)
        assert tfds.SOURCES["clevr_count"].label(example) == len(values) - 3


@given(
    kinds=st.lists(st.integers(0, 7), max_size=6),
    metres=st.lists(st.floats(-5, 90, width=32), min_size=6, max_size=6),
)
def test_kitti_labels(kinds: list[int], metres: list[float]) -> None:
    location = np.array([[0, 0, m] for m in metres[: len(kinds)]], np.float32).reshape(-1, 3)
    example = {"objects": {"type": np.array(kinds, int), "location": location}}
    vehicles = [m for k, m in zip(kinds, location[:, 2], strict=True) if k in (0, 1, 2)]
    naive = _bin_naive(min([*vehicles, 1000.0]), [-100.0, 8.0, 20.0, 999.0])
    assert tfds.SOURCES["kitti"].label(example) == naive
    assert naive == 3 or vehicles


def test_dsprites_labels_group_near_values() -> None:
    for task, key, values in (
        ("dsprites_loc", "label_x_position", 32),
        ("dsprites_ori", "label_orientation", 40),
    ):
        got = [tfds.SOURCES[task].label({key: np.int64(v)}) for v in range(values)]
        assert got == [int(np.float32(v) // np.float32(values / 16)) for v in range(values)]
        assert set(got) == set(range(16))


def test_a_task_is_read_from_a_prepared_set(
    library: Callable[..., list[str]], prepared: Callable[[str], Path], table: Callable[..., None]
) -> None:
    picture = _png(np.full((2, 3), 7, np.uint8))
    rows = [{"image": picture, "label": np.int64(i % 37)} for i in range(1500)]
    built = library({"train": rows, "test": rows[:50]})
    root = prepared("oxford_iiit_pet/3.2.0")
    table("vtab-1k/oxford_iiit_pet", counts={"train": 800, "val": 200, "test": 50})
    parts = suites.read("vtab-1k/oxford_iiit_pet")
    assert built == [f"oxford_iiit_pet:3.*.* in {root}"]
    assert parts["val"].labels[0] == 1200 % 37 and parts["train"].labels[799] == 799 % 37
    assert parts["train"].images[5] == picture  # encoded as it came
    assert parts["train"].image(5).getpixel((0, 0)) == (7, 7, 7)
    assert len(parts["train"].classes) == 37


def test_dsprites_are_black_and_white(
    library: Callable[..., list[str]], prepared: Callable[[str], Path], table: Callable[..., None]
) -> None:
    picture = _png(np.array([[0, 1], [1, 0]], np.uint8))
    rows = [{"image": picture, "label_x_position": np.int64(i % 32)} for i in range(2500)]
    library({"train": rows})
    prepared("dsprites/2.0.0")
    table("vtab-1k/dsprites_loc", counts={"train": 800, "val": 200, "test": 250})
    data = load_data("vtab-1k/dsprites_loc", seed=0, fraction=0.01)
    assert np.unique(np.asarray(data.train.image(0))).tolist() == [0, 255]
    assert data.train.counts() == {str(i): 1 for i in range(16)}


def test_a_wrong_count_is_found(
    library: Callable[..., list[str]], prepared: Callable[[str], Path]
) -> None:
    rows = [{"image": _png(np.zeros((2, 2), np.uint8)), "label": np.int64(0)}] * 1100
    library({"train": rows, "validation": rows, "test": rows})
    prepared("dtd/3.0.1")
    with refused(DataError, what="images of vtab-1k/dtd"):
        suites.read("vtab-1k/dtd")


def test_lists_are_preferred(
    library: Callable[..., list[str]],
    prepared: Callable[[str], Path],
    table: Callable[..., None],
    noah: Callable[..., Path],
) -> None:
    built = library({})
    root = prepared("eurosat/rgb/2.0.0")
    counts = {"train": 8, "val": 4, "test": 12}
    noah(root / "eurosat", counts, classes=10)
    table("vtab-1k/eurosat", counts=counts)
    assert len(suites.read("vtab-1k/eurosat")["test"]) == 12 and not built


def test_without_the_package_an_extra_is_missing(
    prepared: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    prepared("sun397/tfds/4.0.0")
    with refused(MissingExtra, what="optional dependency 'tensorflow-datasets'"):
        suites.read("vtab-1k/sun397")


def test_a_set_that_tfds_cannot_read(
    library: Callable[..., list[str]], prepared: Callable[[str], Path]
) -> None:
    library({"test": []})  # no part `train`: KeyError
    prepared("clevr/3.1.0")
    with refused(DataError, got="KeyError: 'train'"):
        suites.read("vtab-1k/clevr_dist")
