"""VTAB-1k from label lists: the published counts, the layout, and errors in a copy."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from intarsia.core.errors import DataError, UnknownName
from intarsia.data import load_data
from intarsia.runs.choosing.arms import arm
from intarsia.runs.experiment import Experiment, Pictures
from intarsia_lab.bench.budget import estimated
from intarsia_lab.bench.plan import BenchPlan
from intarsia_lab.bench.protocols import protocol
from intarsia_lab.bench.report.records import Done
from intarsia_lab.bench.run import How, run_plan
from intarsia_lab.materials import suites
from intarsia_lab.materials.suites import vtab

from ...refusals import refused

Noah = Callable[..., Path]
Table = Callable[..., None]
SMALL = {"train": 8, "val": 4, "test": 6}
NAMES = (
    "cifar100 caltech101 dtd oxford_flowers102 oxford_iiit_pet svhn sun397 patch_camelyon eurosat"
    " resisc45 diabetic_retinopathy clevr_count clevr_dist dmlab kitti dsprites_loc dsprites_ori"
    " smallnorb_azi smallnorb_ele"
)
CLASSES = "100,102,47,102,37,10,397,2,10,45,5,8,6,6,4,16,16,18,9"


@pytest.fixture
def kitti(home: Path, noah: Noah, table: Table) -> Path:
    """vtab-1k/kitti, 4 classes, as a copy of 8, 4 and 6 images."""
    table("vtab-1k/kitti", counts=SMALL)
    return noah(home / "vtab-1k/kitti", SMALL, classes=4)


def test_the_table_is_the_published_one() -> None:
    tasks = suites.suite("vtab-1k").tasks
    assert [t.name for t in tasks] == NAMES.split()
    assert [t.classes for t in tasks] == list(map(int, CLASSES.split(",")))
    assert Counter(t.group for t in tasks) == {"natural": 7, "specialized": 4, "structured": 8}
    assert {(t.counts["train"], t.counts["val"]) for t in tasks} == {(800, 200)}
    assert suites.suite("vtab-1k").groups == ("natural", "specialized", "structured")


@pytest.mark.parametrize(
    ("task", "folder"),
    [
        ("cifar100", "cifar"),
        ("cifar100", "cifar100"),
        ("oxford_flowers102", "flowers102"),
        ("oxford_iiit_pet", "pets"),
        ("patch_camelyon", "camelyon"),
        ("diabetic_retinopathy", "retinopathy"),
        ("clevr_dist", "clevr_distance"),
    ],
)
def test_lists_are_found_under_every_folder_name(
    home: Path, noah: Noah, table: Table, task: str, folder: str
) -> None:
    classes = suites.suite("vtab-1k").task(task).classes
    counts = SMALL | {"test": classes + 1}
    table(f"vtab-1k/{task}", counts=counts)
    folders = noah(home / "vtab-1k" / folder, counts, classes=classes)
    parts = suites.read(f"vtab-1k/{task}")
    assert {part: len(images) for part, images in parts.items()} == counts
    assert parts["val"].images[3] == folders / "images/val200/000003.png"
    assert parts["test"].labels.tolist() == [*range(classes), 0]
    assert parts["train"].classes == tuple(map(str, range(classes)))


def test_nothing_is_decoded_when_read(kitti: Path) -> None:
    for file in kitti.rglob("*.png"):
        file.write_bytes(b"not a picture")
    parts = suites.read("vtab-1k/kitti")
    assert all(isinstance(path, Path) for images in parts.values() for path in images.images)
    with refused(DataError, what="8 of 8 pictures of 'kitti/train' cannot be read"):
        load_data("vtab-1k/kitti", seed=0)


def test_only_kept_pictures_are_decoded(home: Path, noah: Noah, table: Table) -> None:
    counts = {"train": 8, "val": 4, "test": 16}
    table("vtab-1k/kitti", counts=counts)
    folder = noah(home / "vtab-1k/kitti", counts, classes=4)
    images = load_data("vtab-1k/kitti", seed=0, test=4).test.images
    for path in {folder / f"images/test/{i:06}.png" for i in range(16)} - set(images):
        path.write_bytes(b"not a picture")
    assert len(load_data("vtab-1k/kitti", seed=0, test=4).test) == 4
    with refused(DataError, what="12 of 16 pictures of 'kitti/test' cannot be read"):
        load_data("vtab-1k/kitti", seed=0)
    skipped = load_data("vtab-1k/kitti", seed=0, on_error="skip")
    assert len(skipped.test) == 4 and len(skipped.record["parts"]["test"]["skipped"]) == 12


def test_published_parts_are_kept(kitti: Path) -> None:
    first, second = (load_data("vtab-1k/kitti", seed=seed) for seed in (0, 1))
    assert (len(first.train), len(first.val or ()), len(first.test)) == (8, 4, 6)
    assert first.train.digests == second.train.digests and first.test.digests == second.test.digests
    assert first.val is not None and first.val.images[0] == kitti / "images/val200/000000.png"
    assert first.record["published_parts"] == ["test", "train", "val"]
    assert first.record["spec"] == "vtab-1k/kitti"
    assert first.record["parts"]["train"]["name"] == "kitti/train"
    assert first.record["shared_pictures"] == {
        "train and val": 0, "train and test": 0, "val and test": 0,
    }  # fmt: skip


def test_a_training_part_may_lack_classes(kitti: Path) -> None:
    _relabel(kitti / "train800.txt", 2)
    data = load_data("vtab-1k/kitti", seed=0, fraction=0.5)
    assert data.train.counts() == {"0": 2, "1": 2, "2": 0, "3": 0}
    assert len(data.classes) == 4


def test_pictures_in_two_parts_are_counted_and_announced(kitti: Path) -> None:
    for i in range(2):
        picture = (kitti / f"images/train800/00000{i}.png").read_bytes()
        (kitti / f"images/test/00000{i}.png").write_bytes(picture)
    lines: list[str] = []
    data = load_data("vtab-1k/kitti", seed=0, progress=lines.append)
    assert data.record["shared_pictures"]["train and test"] == 2
    assert lines == ["intarsia: vtab-1k/kitti: train and test share 2 identical pictures"]


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_wrong_counts(kitti: Path, part: str) -> None:
    file = kitti / vtab.LISTS[part]
    file.write_text("\n".join(file.read_text().splitlines()[:-1]))
    with refused(DataError, what="images of vtab-1k/kitti"):
        suites.read("vtab-1k/kitti")


def test_the_published_counts_refuse_a_small_copy(home: Path, noah: Noah) -> None:
    noah(home / "vtab-1k/kitti", SMALL, classes=4)
    with refused(DataError, what="images of vtab-1k/kitti"):
        suites.read("vtab-1k/kitti")


def test_wrong_number_of_classes(kitti: Path, table: Table) -> None:
    table("vtab-1k/kitti", classes=5)
    with refused(DataError, what="classes of vtab-1k/kitti", got=4):
        suites.read("vtab-1k/kitti")


def _relabel(file: Path, classes: int) -> None:
    rows = [line.split()[0] for line in file.read_text().splitlines()]
    file.write_text("".join(f"{row} {i % classes}\n" for i, row in enumerate(rows)))


def test_a_class_without_a_test_picture(kitti: Path) -> None:
    _relabel(kitti / "test.txt", 2)
    with refused(DataError, what="classes of vtab-1k/kitti", got="no test picture of 2: 2, 3"):
        suites.read("vtab-1k/kitti")


def test_a_copy_with_fewer_classes_than_published(kitti: Path) -> None:
    for file in vtab.LISTS.values():  # no label is out of range
        _relabel(kitti / file, 3)
    with refused(
        DataError, what="classes of vtab-1k/kitti", got="no test picture of 1: 3 (in no part)"
    ):
        suites.read("vtab-1k/kitti")


@pytest.mark.parametrize(
    ("first", "second"), [("train", "test"), ("val", "test"), ("train", "val")]
)
@pytest.mark.parametrize("spelt", ["", "./"])
def test_a_path_in_two_parts(kitti: Path, first: str, second: str, spelt: str) -> None:
    first_list, second_list = (kitti / vtab.LISTS[part] for part in (first, second))
    rows = second_list.read_text().splitlines()
    shared = [line.split()[0] for line in first_list.read_text().splitlines()[:2]]
    rows[:2] = [f"{spelt}{path} {i}" for i, path in enumerate(shared)]
    second_list.write_text("\n".join(rows))
    says = f"{first_list.name} and {second_list.name} in .*: got 2 paths in both, as '{shared[0]}'"
    with pytest.raises(DataError, match=says):
        suites.read("vtab-1k/kitti")


def test_missing_files_are_named_with_their_place(kitti: Path, home: Path) -> None:
    (kitti / "test.txt").unlink()
    with refused(DataError, what="vtab-1k/kitti") as error:
        suites.read("vtab-1k/kitti")
    assert str(error.value.got).split() == ["missing:", str(kitti / "test.txt")]
    assert str(home / "vtab-1k") in error.value.fix and "NOAH" in error.value.fix


def test_missing_files_are_named_in_the_existing_folder(kitti: Path) -> None:
    begun = kitti.rename(kitti.with_name("kitti_dist"))
    (begun / "val200.txt").unlink()
    with pytest.raises(DataError) as error:
        suites.read("vtab-1k/kitti")
    assert str(error.value.got).split() == ["missing:", str(begun / "val200.txt")]


def test_missing_pictures_are_named(kitti: Path) -> None:
    gone = [kitti / f"images/test/00000{i}.png" for i in (2, 5)]
    for file in gone:
        file.unlink()
    with refused(DataError, what="pictures of vtab-1k/kitti, test") as error:
        suites.read("vtab-1k/kitti")
    assert all(str(file) in str(error.value) for file in gone)


def test_labels_out_of_range(kitti: Path) -> None:
    with (kitti / "val200.txt").open("a") as file:
        file.write("images/val200/000000.png 4\n")
    with pytest.raises(DataError, match="line 5 .*label 4 is not one of the classes 0 to 3"):
        suites.read("vtab-1k/kitti")


def test_an_unknown_task_gets_a_suggestion(home: Path) -> None:
    with refused(UnknownName, what="unknown task of vtab-1k", got="'cifar10'", near=("cifar100",)):
        load_data("vtab-1k/cifar10", seed=0)


def test_few_shots_of_a_task(kitti: Path) -> None:
    data = load_data("vtab-1k/kitti", seed=0, shots=1)
    assert np.bincount(data.train.labels).tolist() == [1, 1, 1, 1]
    assert len(data.val or ()) == 4 and len(data.test) == 6
    assert data.record["kept"] == {"shots": 1}


@pytest.mark.thorough
def test_the_papers_own_benchmark_runs_on_a_folder_as_noah_has_it(
    kitti: Path, tmp_path: Path
) -> None:
    """`intarsia bench vtab-1k --protocol official`, of a tiny model, on a tiny copy."""
    suite, rules = suites.suite("vtab-1k"), protocol("official")
    start = Experiment(Pictures("")).changed(
        **{**rules.starts, "model": "test_vit", "size": 32, "pretrained": False, "epochs": 2}
    )
    plan = BenchPlan(suite, (suite.task("kitti"),), (arm("mosa"),), (0,), rules, start)
    settings, out = How(executor="here"), tmp_path / "out"
    estimate = estimated(plan, out, settings, lambda _: None)
    assert estimate["runs"] == 1 and estimate["hours"] > 0 and estimate["peak_bytes"] is not None
    (row,) = run_plan(plan, out, settings, lambda _: None)
    assert isinstance(row.outcome, Done)
    record = json.loads((out / row.folder / "run.json").read_text())["record"]
    assert record["data"]["parts"]["train"]["n"] == 12  # train and val together
    assert record["experiment"]["settings"] == ["bottleneck=16"]
