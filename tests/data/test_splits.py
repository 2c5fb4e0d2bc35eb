"""Splits are disjoint, and the test part depends on its seed and size only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import ConfigError, DataError, UnknownName
from intarsia.data import Fold, ImageSet, Splits, hold_out, load_data, make_splits
from intarsia.data.splits import deal

from ..refusals import refused

Noise = Callable[..., ImageSet]
Make = Callable[..., Path]


def _keys(images: ImageSet | None) -> set[str]:
    return set() if images is None else set(images.digests)


def test_any_seed_from_zero_on(noise_set: Noise) -> None:
    found = [make_splits({"all": noise_set(30)}, seed=seed, val=0) for seed in (2**32, 2**62)]
    assert found[0].test.digests != found[1].test.digests
    for make in (
        lambda: make_splits({"all": noise_set(30)}, seed=-1),
        lambda: load_data("x", seed=-1),
    ):
        with refused(ConfigError, what="seed of the split", got=-1):
            make()


@pytest.mark.parametrize("spec", ["nowhere.csv", "a/nowhere", "x" * 5000 + "/y"])
def test_a_path_that_is_not_there(spec: str) -> None:
    with refused(DataError, got="nothing there"):
        load_data(spec)


def _sizes(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.val or ()), len(splits.test)


@given(seed=st.integers(0, 5), train=st.integers(3, 20), val=st.sampled_from([None, 0, 6, 9]))
def test_parts_are_disjoint_and_the_test_part_stays(
    noise_set: Noise, seed: int, train: int, val: int | None
) -> None:
    full = noise_set(60)
    splits = make_splits({"all": full}, seed=seed, train=train, val=val, test=12)
    one, two, three = _keys(splits.train), _keys(splits.val), _keys(splits.test)
    assert not one & two and not one & three and not two & three
    assert (len(one), len(three)) == (train, 12)
    assert val is None or len(two) == val
    again = make_splits({"all": full}, seed=seed, test=12)
    assert _keys(again.test) == three


def test_default_sizes(noise_set: Noise) -> None:
    assert _sizes(make_splits({"all": noise_set(100)}, seed=0)) == (68, 12, 20)


def test_val_zero_gives_no_validation_part(noise_set: Noise) -> None:
    splits = make_splits({"all": noise_set(60)}, seed=0, val=0)
    assert splits.val is None and list(splits.record["parts"]) == ["train", "test"]


def test_another_seed_gives_another_split(noise_set: Noise) -> None:
    one, two = (make_splits({"all": noise_set(60)}, seed=s) for s in (0, 1))
    assert _keys(one.test) != _keys(two.test)


def test_published_parts_are_kept_apart(noise_set: Noise) -> None:
    parts = {"train": noise_set(40), "test": noise_set(12, seed=1)}
    splits = make_splits(parts, seed=0, train=9, val=6)
    assert _keys(splits.test) == set(make_splits(parts, seed=5).test.digests)
    assert _sizes(splits) == (9, 6, 12)
    assert splits.record["published_parts"] == ["test", "train"]


def test_a_published_val_part_is_used(noise_set: Noise) -> None:
    parts = {n: noise_set(30, seed=i) for i, n in enumerate(("train", "val", "test"))}
    assert _sizes(make_splits(parts, seed=0, val=9, test=12)) == (30, 9, 12)
    assert _sizes(make_splits(parts, seed=0)) == (30, 30, 30)


def test_a_picture_in_two_parts_is_reported(noise_set: Noise) -> None:
    full = noise_set(30)
    splits = make_splits({"train": full, "test": full.select(range(3))}, seed=0, val=0)
    assert splits.record["shared_pictures"] == {"train and test": 3}


def test_the_record_is_json(noise_set: Noise) -> None:
    record = make_splits({"all": noise_set(60)}, seed=0).record
    assert json.loads(json.dumps(record)) == record
    assert record["parts"]["train"]["name"] == "noise/train"


@pytest.mark.parametrize(
    "sizes",
    [{"train": 0}, {"test": 0}, {"val": -1}, {"train": 50}, {"test": 59}, {"val": 2}]
    + [{"train": 10.5}, {"val": 2.5}, {"shots": 1.5}, {"test": "6"}, {"fraction": "0.1"}],
    ids=str,
)
def test_impossible_sizes(noise_set: Noise, sizes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make_splits({"all": noise_set(60)}, seed=0, **sizes)


def test_parts_without_train(noise_set: Noise) -> None:
    with refused(DataError, what="parts of the data", got="test"):
        make_splits({"test": noise_set(9)}, seed=0)


def test_a_folder_by_path(make_folder: Make) -> None:
    folder = make_folder({"cat": 12, "dog": 12})
    splits = load_data(str(folder), seed=0)
    assert _sizes(splits) == (16, 3, 5) and splits.classes == ("cat", "dog")
    assert splits.record["spec"] == str(folder)
    assert load_data(folder, seed=0).record == splits.record
    wrong: Any = splits.train
    with refused(ConfigError, what="data", got="ImageSet"):
        load_data(wrong)
    wrong = "rase"
    with refused(ConfigError, what="on_error", got="'rase'"):
        load_data(folder, on_error=wrong)


def test_a_csv_by_path(make_folder: Make) -> None:
    folder = make_folder({"x": 20})
    rows = "\n".join(f"x/{i:02}.png,{'ab'[i % 2]}" for i in range(20))
    (folder / "index.csv").write_text("image,label\n" + rows)
    assert _sizes(load_data(str(folder / "index.csv"), seed=0)) == (14, 2, 4)


def test_shared_pictures_are_announced(make_folder: Make) -> None:
    folder = make_folder({f"{p}/{c}": 6 for p in ("train", "test") for c in "ab"})
    (folder / "test/a/00.png").write_bytes((folder / "train/a/00.png").read_bytes())
    lines: list[str] = []
    load_data(str(folder), seed=0, val=0, progress=lines.append)
    assert len(lines) == 1 and "train and test share 1 identical picture" in lines[0]


@pytest.mark.parametrize(
    ("spec", "error", "got"),
    [
        ("fashion-mnits", UnknownName, "'fashion-mnits'"),
        ("vtab-1k", UnknownName, "'vtab-1k'"),
        ("vtab1k/dtd", UnknownName, "'vtab1k'"),
        ("mini-photos/summer", DataError, "nothing there"),
        ("./nowhere/photos", DataError, "nothing there"),
        ("table.csv", DataError, "nothing there"),
    ],
)
def test_neither_a_name_nor_a_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, error: type[Exception], got: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(error, got=got):
        load_data(spec, seed=0)


@given(
    seed=st.integers(0, 5),
    published=st.booleans(),
    asked=st.sampled_from([{"fraction": 0.1}, {"fraction": 0.5}, {"shots": 1}, {"shots": 4}]),
)
def test_fewer_training_images_leave_the_other_parts_alone(
    noise_set: Noise, seed: int, published: bool, asked: dict[str, float]
) -> None:
    parts = {"train" if published else "all": noise_set(90)}
    parts |= {"val": noise_set(12, seed=1), "test": noise_set(9, seed=2)} if published else {}
    full, few = make_splits(parts, seed=seed), make_splits(parts, seed=seed, **asked)  # pyright: ignore
    assert _keys(few.train) < _keys(full.train)
    assert few.val is not None and full.val is not None
    assert few.val.digests == full.val.digests and few.test.digests == full.test.digests
    per_class = set(few.train.counts().values())
    if "shots" in asked:
        assert per_class == {asked["shots"]}
    else:
        share = len(few.train) / len(full.train)
        assert abs(share - asked["fraction"]) < 0.5 * 3 / len(full.train) + 1e-9
    assert few.record["kept"] == asked and full.record["kept"] == {}


def test_fewer_shots_where_there_are_not_enough(noise_set: Noise) -> None:
    parts = {"train": noise_set(11), "test": noise_set(6, seed=1)}
    with refused(ConfigError, what="images of each class of 'noise'"):
        make_splits(parts, seed=0, val=0, shots=4)
    few = make_splits(parts, seed=0, val=0, shots=4, fewer=True)
    assert list(few.train.counts().values()) == [4, 4, 3]
    assert few.record["kept"] == {"shots": 4, "fewer": True}


def test_only_one_way_to_reduce_training_images_may_be_given(
    noise_set: Noise, make_folder: Make
) -> None:
    with refused(ConfigError, what="size of the training part", got="train=9 and fraction=0.5"):
        make_splits({"all": noise_set(60)}, seed=0, train=9, fraction=0.5)
    with refused(ConfigError, what="size of the training part", got="train=9 and shots=1"):
        load_data("nowhere at all", seed=0, train=9, shots=1)  # before anything is read
    data = load_data(str(make_folder({"cat": 12, "dog": 12})), seed=0, shots=2)
    assert data.train.counts() == {"cat": 2, "dog": 2} and data.record["kept"] == {"shots": 2}


def test_classes_without_training_image(noise_set: Noise) -> None:
    full = noise_set(30)
    parts = {"train": full.select(range(0, 30, 3)), "val": full, "test": noise_set(9, seed=1)}
    with refused(DataError, what="classes of 'noise/train'"):
        make_splits(parts, seed=0)
    kept = make_splits(parts, seed=0, every_class=False)
    assert kept.train.counts() == {"c0": 10, "c1": 0, "c2": 0} and len(kept.classes) == 3


@given(seed=st.integers(0, 2**32 - 1), counts=st.lists(st.integers(1, 20), min_size=1, max_size=5))
def test_folds_deal_out_every_class_evenly(seed: int, counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    fold = deal(labels, 5, seed)
    assert np.ptp(np.bincount(fold, minlength=5)) <= 1
    for label in range(len(counts)):
        assert np.ptp(np.bincount(fold[labels == label], minlength=5)) <= 1
    assert (deal(labels, 5, seed) == fold).all()
    rows = np.eye(len(counts), dtype=np.int64)[labels]  # the same, as rows of labels
    assert (np.ptp([np.bincount(deal(rows, 5, seed), minlength=5)], axis=1) <= 1).all()


def test_a_fold_is_held_out_of_the_training_part_alone(noise_set: Noise) -> None:
    whole = make_splits({"train": noise_set(23), "test": noise_set(6, seed=1)}, seed=0, val=0)
    held: set[str] = set()
    for number in range(5):
        found = hold_out(whole, Fold(number, 5, seed=3))
        assert _keys(found.train) | _keys(found.val) == _keys(whole.train)
        assert not _keys(found.train) & _keys(found.val) and not held & _keys(found.val)
        assert found.test is whole.test
        held |= _keys(found.val)
        assert found.record["fold"] == {"number": number, "folds": 5, "seed": 3}
        assert found.val is not None and found.record["parts"]["val"]["n"] == len(found.val)
    assert held == _keys(whole.train)


def test_a_validation_part_can_be_trained_on(make_folder: Make) -> None:
    folder = make_folder({f"{p}/{c}": 4 for p in ("train", "val", "test") for c in ("cat", "dog")})
    apart, joined = (load_data(f"{folder}{end}", seed=0, val=0) for end in ("", "@train+val"))
    assert len(apart.train) == 8 and len(joined.train) == 16 and joined.val is None
    assert joined.test.digests == apart.test.digests
    with refused(DataError, got="nothing there"):
        load_data(f"{folder}x@train+val", seed=0)
