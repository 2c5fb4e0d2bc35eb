"""What is asked before the first run: a model that is none, pictures that are not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from intarsia.core.errors import AssetError, ConfigError, DataError, IntarsiaError, UnknownName
from intarsia.data import backbones
from intarsia.runs.choosing.arms import arm
from intarsia_lab.bench.budget import measured_costs
from intarsia_lab.bench.plan import BenchPlan
from intarsia_lab.bench.preflight import check
from intarsia_lab.bench.run import How, run_plan

from ...refusals import refused
from . import toys

ONE = How(executor="here")


def nothing(inputs: Any) -> dict[str, Any]:
    raise AssertionError("a run began")


def on_disk(folder: Path, *names: str) -> BenchPlan:
    """The toys, each with a file that it needs, some of which are there."""
    tasks = tuple(replace(t, needs=(f"{t.name}/labels.txt",)) for t in toys.TOYS.tasks)
    for name in names:
        (folder / "toys" / name).mkdir(parents=True)
        (folder / "toys" / name / "labels.txt").touch()
    return toys.plan(suite=replace(toys.TOYS, tasks=tasks, how="Ask Ada."), tasks=tasks)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("INTARSIA_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_a_plan_without_any_pictures_is_refused_at_once(data: Path, tmp_path: Path) -> None:
    plan, out = on_disk(data), tmp_path / "out"
    for begin in (run_plan, measured_costs):
        with pytest.raises(DataError) as error:
            begin(plan, out, ONE, print, nothing)
        assert error.value.what == "pictures of toys, 3 of 3 tasks"
        assert str(data / "toys" / "two" / "labels.txt") in str(error.value.got)
        assert "Ask Ada" in str(error.value.fix) and str(data / "toys") in str(error.value.fix)
    assert not out.exists()


def test_of_some_that_are_missing_one_line_tells(data: Path, tmp_path: Path) -> None:
    plan, messages = on_disk(data, "two"), []
    results = run_plan(plan, tmp_path, ONE, messages.append, toys.work)
    assert len(results) == 18
    (note,) = [line for line in messages if "Not on disk" in line]
    assert "one (missing:" in note and "three (missing:" in note and "two" not in note
    run_plan(plan, tmp_path, ONE, messages.append, nothing)  # all is there: nothing is told again
    assert len([line for line in messages if "Not on disk" in line]) == 1


def test_tables_can_be_had_where_the_pictures_are_not(data: Path, tmp_path: Path) -> None:
    plan = on_disk(data, "one", "two", "three")
    results = run_plan(plan, tmp_path, ONE, lambda _: None, toys.work)
    for task in plan.tasks:
        (data / "toys" / task.name / "labels.txt").unlink()
    assert run_plan(plan, tmp_path, ONE, lambda _: None, nothing) == results
    with refused(DataError, what="pictures of toys, 3 of 3 tasks"):
        run_plan(replace(plan, seeds=(0, 1, 2)), tmp_path, ONE, print, nothing)


def test_a_pilot_takes_a_task_that_is_there(data: Path, tmp_path: Path) -> None:
    ran: list[str] = []

    def work(inputs: Any) -> dict[str, Any]:
        ran.append(inputs["experiment"]["data"])
        return toys.work(inputs)

    measured_costs(on_disk(data, "two"), tmp_path, ONE, lambda _: None, work)
    assert set(ran) == {"toys/two@train+val"}


@pytest.mark.parametrize(
    'error, changes, got',
    [
        (UnknownName, {"model": "img-focsu"}, "'img-focsu'"),
        (ConfigError, {"size": 57}, "57"),
        (AssetError, {"model": "test_vit_nameless"}, "none published"),
        (ConfigError, {"last_blocks": 13}, "13"),
        (ConfigError, {"last_blocks": 12, "frozen_once": True}, "12"),
        (ConfigError, {"last_blocks": -1}, "-1"),
        (
            ConfigError, {"model": "test_mambaout", "pretrained": False, "last_blocks": 3},
            "3",
        ),
        (
            ConfigError, {"model": "test_convnext", "last_blocks": 3, "frozen_once": True},
            "ConvNeXt",
        ),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_is_refused_at_once(
    error: type[IntarsiaError], changes: dict[str, Any], got: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real = backbones.timm.is_model
    monkeypatch.setattr(backbones.timm, "is_model", lambda n: n == "test_vit_nameless" or real(n))
    plan = toys.plan()
    with refused(error, got=got):  # some are refused where the experiment is put together
        plan = replace(plan, start=plan.start.changed(**changes))
        run_plan(plan, tmp_path / "out", ONE, print, nothing)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, methods",
    [
        ({"last_blocks": 12}, "mosa"),
        ({"last_blocks": 11, "frozen_once": True}, "mosa"),
        ({"model": "test_resnet", "last_blocks": 3, "frozen_once": True}, "linear"),
        ({"model": "hf-hub:somebody/model", "last_blocks": 99}, "mosa"),  # not known here
        ({"model": "efficientnet-lite0", "size": 64}, "mosa"),
    ],
)
def test_what_may_be_is_let_through(
    changes: dict[str, Any], methods: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(backbones, "_packaged_weights", refuse)
    plan = toys.plan(arms=(arm(methods),))
    check(replace(plan, start=plan.start.changed(**changes)), tmp_path, print)
