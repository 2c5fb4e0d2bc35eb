"""Suites by name, which of their data are on disk, and joint tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from intarsia.core.errors import ConfigError, DataError, UnknownName
from intarsia.data import load_data
from intarsia_lab.materials import suites

from ...refusals import refused

Noah = Callable[..., Path]
Table = Callable[..., None]
SMALL = {"train": 8, "val": 4, "test": 8}
ON_DISK = ("vtab-1k", "fgvc", "gicd")


@pytest.fixture
def pair(home: Path, noah: Noah, table: Table) -> Path:
    """Copies of vtab-1k/kitti (4 classes) and vtab-1k/patch_camelyon (2 classes)."""
    for name, classes in (("kitti", 4), ("patch_camelyon", 2)):
        table(f"vtab-1k/{name}", counts=SMALL)
        noah(home / "vtab-1k" / name, SMALL, classes=classes)
    return home


@pytest.mark.parametrize("name", ON_DISK)
def test_a_suite_by_name(name: str) -> None:
    found = suites.suite(name)
    assert found.name == name and found.how and found.about
    assert {t.group for t in found.tasks} == set(found.groups)
    assert len({t.name for t in found.tasks}) == len(found.tasks)
    assert not any(c in t.name for t in found.tasks for c in "/+|*")
    assert suites.JOINT not in {t.name for t in found.tasks}


def test_an_unknown_suite_gets_a_suggestion() -> None:
    with refused(UnknownName, what="unknown suite", got="'vtab1k'", near=("vtab-1k",)):
        suites.suite("vtab1k")
    with refused(UnknownName, what="unknown suite", got="'vtab1k'"):
        suites.read("vtab1k/dtd")


@pytest.mark.parametrize("spec", ["elpv", "photos/", "./vtab-1k/dtd", "/vtab-1k/dtd", "vtab-1k"])
def test_other_specifications_are_not_tasks(spec: str) -> None:
    assert suites.find(spec) is None


def test_the_folder_of_the_pictures(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fgvc = suites.suite("fgvc")
    assert suites.root(fgvc) == home / "fgvc"
    monkeypatch.delenv("INTARSIA_DATA")
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path / "cache"))
    assert suites.root(fgvc) == tmp_path / "cache/suites/fgvc"


def _record(found: list[dict], suite: str, task: str) -> dict:
    tasks = next(s["tasks"] for s in found if s["suite"] == suite)
    return next(t for t in tasks if t["task"] == task)


def test_describe_lists_what_is_on_disk(pair: Path) -> None:
    found = suites.describe()
    assert json.loads(json.dumps(found)) == found
    assert [s["suite"] for s in found] == list(suites.MODULES)
    kitti = _record(found, "vtab-1k", "kitti")
    assert kitti["on_disk"] is True and kitti["missing"] == []
    assert (kitti["classes"], kitti["counts"], kitti["group"]) == (4, SMALL, "structured")
    assert kitti["spec"] == "vtab-1k/kitti" and kitti["synthetic"] is False
    (pair / "vtab-1k/kitti/test.txt").unlink()
    kitti = _record(suites.describe(pair), "vtab-1k", "kitti")
    assert kitti["on_disk"] is False
    assert kitti["missing"] == [str(pair / "vtab-1k/kitti/test.txt")]
    elsewhere = _record(suites.describe(pair / "elsewhere"), "vtab-1k", "kitti")
    assert len(elsewhere["missing"]) == 3


def test_a_missing_dependency_breaks_one_suite_only(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken: Mapping[str, str] = {"vtab-1k": "vtab", "odd": "needs_what_is_not_installed"}
    monkeypatch.setattr(suites, "MODULES", broken)
    assert [s.name for s in suites.suites()] == ["vtab-1k"]
    odd = suites.describe()[1]
    assert odd["tasks"] == [] and "needs_what_is_not_installed" in odd["error"]
    with pytest.raises(ImportError):
        suites.suite("odd")


def test_two_tasks_are_joined(pair: Path) -> None:
    data = load_data("vtab-1k/kitti+patch_camelyon", seed=0)
    assert data.classes == tuple(f"kitti/{i}" for i in range(4)) + tuple(
        f"patch_camelyon/{i}" for i in range(2)
    )
    assert (len(data.train), len(data.val or ()), len(data.test)) == (16, 8, 16)
    assert data.record["tasks"] == {"kitti": [0, 1, 2, 3], "patch_camelyon": [4, 5]}
    assert json.loads(json.dumps(data.record)) == data.record
    few = load_data("vtab-1k/kitti+patch_camelyon", seed=0, shots=2)
    assert set(few.train.counts().values()) == {2} and len(few.test) == 16
    other = load_data("vtab-1k/patch_camelyon+kitti", seed=0)
    assert other.classes[0] == "patch_camelyon/0"
    assert "tasks" not in load_data("vtab-1k/kitti", seed=0).record


def test_each_task_of_a_join_is_checked(pair: Path) -> None:
    (pair / "vtab-1k/kitti/images/test/000001.png").unlink()
    with refused(DataError, what="pictures of vtab-1k/kitti, test"):
        suites.read("vtab-1k/kitti+patch_camelyon")
    (pair / "vtab-1k/patch_camelyon/val200.txt").unlink()
    with refused(DataError, what="vtab-1k/kitti+patch_camelyon"):
        suites.read("vtab-1k/kitti+patch_camelyon")


def test_all_tasks_of_a_suite() -> None:
    found = suites.find("fgvc/joint")
    assert found is not None and found[1].classes == 1173  # as MoSA's multi-task table has
    assert found[1].counts["test"] == sum(t.counts["test"] for t in found[0].tasks)
    gicd = suites.find("gicd/joint")
    assert gicd is not None and dict(gicd[1].counts) == {"train": 132_417, "test": 38_583}


@pytest.mark.parametrize(
    ("spec", "error", "got"),
    [
        ("fgvc/cub+cats", UnknownName, "'cats'"),
        ("fgvc/cub+cub", ConfigError, "cub + cub"),
        ("fgvc/cub+", UnknownName, "''"),
    ],
)
def test_impossible_joins_are_refused(spec: str, error: type[Exception], got: str) -> None:
    with refused(error, got=got):
        suites.find(spec)


def test_a_fraction_of_a_joint_task_is_drawn(pair: Path) -> None:
    assert suites.published("vtab-1k/kitti+patch_camelyon", 0.5) is None
    assert suites.published("fgvc/joint", 0.5) is None
