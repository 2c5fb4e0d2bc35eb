"""The protocol of MoSA's pairs: what it may use, and its rule for rates."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from intarsia.core.store import Store, key_of
from intarsia_lab.materials.suites import suite

FOLDER = Path(__file__).parents[3] / "benchmarks"
RULES = json.loads((FOLDER / "mosa_pairs.json").read_text())


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("mosa_pairs", "frame"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return __import__("mosa_pairs")


def test_a_confirmation_uses_nothing_that_chose() -> None:
    rates, confirmed = RULES["rates"], RULES["confirmation"]
    assert confirmed["suite"] != rates["suite"] and not {*confirmed["seeds"]} & {*rates["seeds"]}
    assert {*confirmed["tasks"]} == {task.name for task in suite(confirmed["suite"]).tasks}
    assert len(confirmed["tasks"]) * len(confirmed["seeds"]) >= 70


def test_the_pair_differs_in_the_method_alone(pairs: ModuleType) -> None:
    for budget in RULES["budgets"]:
        first, second = (
            pairs.experiment(RULES, pairs.Place("confirm", budget, name, 0.01, "twemoji", 3)).flat()
            for name in RULES["pair"]
        )
        assert {n for n in first if first[n] != second[n]} == {"method", "settings"}
        joined = RULES["budgets"][budget]["joined"]
        assert first["data"].endswith("@train+val") == joined and (first["val"] == 0) == joined


def test_the_rate_is_the_best_on_average_and_the_lower_of_equals(
    pairs: ModuleType, tmp_path: Path
) -> None:
    store = Store(tmp_path, "rows.jsonl")
    score = {0.001: 0.5, 0.002: 0.7, 0.005: 0.7, 0.01: 0.9, 0.02: 0.1}
    for place in pairs.rate_places(RULES, ["scarce"], ["mosa"]):
        assert pairs.chosen(RULES, store, "scarce", "mosa") is None  # until all are there
        failed = place.rate == 0.01  # counts as 0
        row = {} if failed else {"scores": {"accuracy": score[place.rate]}}
        store.add(key_of(vars(place)), {**vars(place), "error": "nan" if failed else "", **row})
    assert pairs.chosen(RULES, store, "scarce", "mosa") == 0.002


def test_a_run_without_validation_pictures_is_told_by_its_test(pairs: ModuleType) -> None:
    assert pairs.said({"results": {"test": {"accuracy": 0.5}}}) == "50.0 %"
    assert pairs.said({"results": {"val": {"accuracy": 0.25}}}) == "25.0 %"
