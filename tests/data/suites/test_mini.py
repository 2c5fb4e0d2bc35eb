"""The `mini` suite: parts are as declared, stratified, fixed and disjoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from intarsia.data import ImageSet, sets
from intarsia.data.fingerprints import shared
from intarsia.data.images import check_every_class, verify
from intarsia.data.packages import Package
from intarsia_lab.materials import structured
from intarsia_lab.materials.suites import mini, suite
from intarsia_lab.materials.suites.task import Parts, SuiteTask

SUITE = mini.SUITE
REAL = [task for task in SUITE.tasks if not task.name.startswith("synthetic")]
RENDERED = [task for task in SUITE.tasks if task.name in structured.names()]


def test_enough_tasks_of_every_kind() -> None:
    assert suite("mini") is SUITE
    assert len({task.name for task in SUITE.tasks}) == len(SUITE.tasks) == 15
    all_tasks = [*REAL, *suite("fresh").tasks]
    assert {task.name for task in all_tasks} == set(sets.names())
    assert {t.name for t in SUITE.tasks if t.synthetic} == {"textile", *structured.names()}
    assert {task.group for task in SUITE.tasks} == set(SUITE.groups)


@pytest.mark.parametrize("task", SUITE.tasks, ids=lambda t: t.name)
def test_sizes_are_vtabs_or_declared_smaller(task: SuiteTask) -> None:
    assert task.needs == () and task.about and task.classes >= 2
    train, val, test = (task.counts[part] for part in ("train", "val", "test"))
    assert (train, val) == ((400, 100) if task.name == "tuxpaint" else (800, 200))
    assert 450 <= test <= 1000


def _check(task: SuiteTask, parts: Parts) -> None:
    assert {part: len(images) for part, images in parts.items()} == dict(task.counts)
    verified = {part: verify(images) for part, images in parts.items()}
    for part, images in verified.items():
        check_every_class(images)
        assert len(images.classes) == task.classes and images.name == f"{task.name}/{part}"
        assert len(set(images.digests)) == len(images)  # none twice
    for first_part, second_part in (("train", "val"), ("train", "test"), ("val", "test")):
        assert shared(verified[first_part], verified[second_part]) == []


@pytest.mark.parametrize("task", RENDERED[:2], ids=lambda t: t.name)
def test_rendered_tasks_match_their_declaration(task: SuiteTask, tmp_path: Path) -> None:
    _check(task, task.read(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("task", RENDERED[2:], ids=lambda t: t.name)
def test_ray_cast_tasks_match_their_declaration(task: SuiteTask, tmp_path: Path) -> None:
    _check(task, task.read(tmp_path))


@pytest.mark.network
@pytest.mark.parametrize("task", REAL, ids=lambda t: t.name)
def test_real_tasks_match_their_declaration(task: SuiteTask, tmp_path: Path) -> None:
    parts = task.read(tmp_path)
    _check(task, parts)
    full = np.bincount(sets.load(task.name).labels) / len(sets.load(task.name))
    for images in parts.values():
        share = np.bincount(images.labels, minlength=task.classes) / len(images)
        assert np.abs(share - full).max() < 0.015  # in the proportions of the whole


def _toy(monkeypatch: pytest.MonkeyPatch, published: int | None) -> None:
    """100 pictures of 4 classes: number 7 is a copy of 3, 90 of 10, 51 of 50 with another label."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 4, 4), dtype=np.uint8)
    for copy, original in ((7, 3), (90, 10), (51, 50)):
        pixels[copy] = pixels[original]
    labels = [i % 4 for i in range(100)]
    package = Package("pypi", "toy", "1", "0" * 64, 1, "CC0")
    read = lambda _: (pixels, labels, list("abcd"))  # noqa: E731
    monkeypatch.setitem(sets.SETS, "toy", sets.NamedSet(package, read, "toy", published))
    monkeypatch.setattr(sets, "obtain", lambda *_, **__: Path())


def test_copies_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _toy(monkeypatch, None)
    distinct = set(mini.distinct(sets.load("toy", progress=lambda _: None)).tolist())
    assert set(range(100)) - distinct == {7, 90, 50, 51}


def test_parts_are_fixed_disjoint_and_stratified(monkeypatch: pytest.MonkeyPatch) -> None:
    _toy(monkeypatch, None)
    first, second = (mini.read_named("toy", (40, 16, 32), Path()) for _ in range(2))
    assert [len(first[part]) for part in mini.PARTS] == [40, 16, 32]
    pictures = {p.tobytes() for part in first.values() for p in np.asarray(part.images)}
    assert len(pictures) == 88
    for part in mini.PARTS:
        np.testing.assert_array_equal(first[part].images, second[part].images)
        counts = list(first[part].counts().values())
        assert max(counts) - min(counts) <= 2


def test_all_remaining_pictures_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    _toy(monkeypatch, None)
    parts = mini.read_named("toy", (50, 16, 30), Path())  # 96 without the copies
    assert sum(map(len, parts.values())) == 96


def test_the_publishers_test_part_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    _toy(monkeypatch, 60)
    parts = mini.read_named("toy", (30, 10, 20), Path())
    pictures = np.asarray(sets.load("toy").images)
    late = {pictures[i].tobytes() for i in range(60, 100) if i != 90}  # 90 counts as a copy of 10
    assert {p.tobytes() for p in np.asarray(parts["test"].images)} <= late
    for part in ("train", "val"):
        assert not {p.tobytes() for p in np.asarray(parts[part].images)} & late


def test_a_set_without_copies_is_kept_whole(noise_set: Callable[..., ImageSet]) -> None:
    assert mini.distinct(noise_set(30)).tolist() == list(range(30))
