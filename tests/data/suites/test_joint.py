"""Joint tasks: every picture keeps its class, under the name of its task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import ConfigError
from intarsia.data import ImageSet, make_splits
from intarsia_lab.materials.suites.joint import groups, joint, joint_task
from intarsia_lab.materials.suites.task import Parts, SuiteTask

from ...refusals import refused

PARTS = ("train", "val", "test")


def _task(name: str, sizes: dict[str, int], classes: int, *, seed: int, lists: bool) -> Parts:
    parts = {}
    for i, (part, n) in enumerate(sizes.items()):
        rng = np.random.default_rng((seed, i))
        pixels = rng.integers(0, 256, (n, 3 + seed % 3, 4), dtype=np.uint8)
        labels = np.arange(n, dtype=np.int64) % classes
        names = tuple(f"{name}{c}/x" for c in range(classes))  # a class name may hold a slash
        parts[part] = ImageSet(name, list(pixels) if lists else pixels, labels, names)
    return parts


SIZES = st.fixed_dictionaries(
    {"train": st.integers(2, 6), "test": st.integers(1, 4)}, optional={"val": st.integers(1, 4)}
)
TASKS = st.lists(st.tuples(SIZES, st.integers(2, 4), st.booleans()), min_size=2, max_size=4)


def _pairs(images: ImageSet, prefix: str = "") -> list[tuple[bytes, str]]:
    return [
        (images.image(i).tobytes(), prefix + images.classes[images.labels[i]])
        for i in range(len(images))
    ]


@given(drawn=TASKS)
def test_every_picture_keeps_its_class(drawn: list[tuple[dict[str, int], int, bool]]) -> None:
    tasks = {
        f"t{i}": _task(f"t{i}", sizes, classes, seed=i, lists=lists)
        for i, (sizes, classes, lists) in enumerate(drawn)
    }
    joined = joint(tasks)
    all_have_val = all("val" in parts for parts in tasks.values())
    assert set(joined) == ({"train", "val", "test"} if all_have_val else {"train", "test"})
    for part, images in joined.items():
        sources = ("train", "val") if part == "train" and not all_have_val else (part,)
        expected = [
            pair
            for name, parts in tasks.items()
            for source in sources
            if source in parts
            for pair in _pairs(parts[source], f"{name}/")
        ]
        assert sorted(_pairs(images)) == sorted(expected)
    classes = joined["test"].classes
    assert groups(classes) == {
        name: [i for i, c in enumerate(classes) if c.startswith(f"{name}/")] for name in tasks
    }
    assert [i for members in groups(classes).values() for i in members] == list(range(len(classes)))


@given(sizes=TASKS)
def test_the_joint_counts_match_the_joint_parts(
    sizes: list[tuple[dict[str, int], int, bool]],
) -> None:
    parts = {f"t{i}": _task(f"t{i}", s, c, seed=i, lists=x) for i, (s, c, x) in enumerate(sizes)}
    tasks = [
        SuiteTask(name, "g", len(p["test"].classes), {k: len(v) for k, v in p.items()},
             lambda _, p=p: p, needs=(name,))
        for name, p in parts.items()
    ]  # fmt: skip
    joined = joint_task(tasks, "all", lambda task, root: task.read(root))
    read = joined.read(Path())
    assert {part: len(images) for part, images in read.items()} == dict(joined.counts)
    assert {len(images.classes) for images in read.values()} == {joined.classes}
    assert joined.needs == tuple(parts) and joined.group == "joint"


def test_pictures_are_read_on_access(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    labels = np.array([0, 1, 0, 1])
    first = ImageSet("one", paths, labels, ("a", "b"))
    second = ImageSet("two", np.zeros((4, 2, 2), np.uint8), labels, ("a", "b"))
    joined = joint(
        {"one": {"train": first, "test": first}, "two": {"train": second, "test": second}}
    )
    assert [joined["train"].images[i] for i in range(4)] == paths
    with pytest.raises(IndexError):
        joined["train"].images[8]


def test_paths_and_arrays_are_split_and_checked_together(
    tmp_path: Path, draw: Callable[..., None]
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(8)]
    draw(paths)
    labels = np.arange(8) % 2
    files = ImageSet("files", paths, labels, ("a", "b"))
    noise = np.random.default_rng(0).integers(0, 256, (8, 4, 4), dtype=np.uint8)
    arrays = ImageSet("arrays", noise, labels, ("a", "b"))
    for order in (("f", "a"), ("a", "f")):
        sets = {"f": {"train": files, "test": files}, "a": {"train": arrays, "test": arrays}}
        splits = make_splits(dict(joint({name: sets[name] for name in order})), seed=0, val=0)
        assert splits.record["shared_pictures"] == {"train and test": 16}
        assert len(set(splits.train.digests)) == 16


def test_impossible_joins_are_refused() -> None:
    good = _task("good", {"train": 4, "test": 2}, 2, seed=0, lists=False)
    with refused(ConfigError, what="joint tasks", got="1 task"):
        joint({"good": good})
    with refused(ConfigError, what="joint tasks", got="b without train or test"):
        joint({"a": good, "b": {"all": good["train"]}})
    task = SuiteTask("good", "g", 2, {"train": 4, "test": 2}, lambda _: good)
    with refused(ConfigError, what="joint tasks", got="good + good"):
        joint_task([task, task], "good+good", lambda t, root: t.read(root))
