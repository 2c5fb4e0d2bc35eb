"""The claims on COMET in their smallest form, and how a lucky draw is told from a good gate."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from intarsia.claims import comet, mix6


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    data = mix6.data
    monkeypatch.setattr(mix6, "TASKS", {"identity": mix6.TASKS["identity"]})
    monkeypatch.setattr(mix6, "data", lambda part: data(part, ["identity"]))


def test_the_claims_judge_the_same_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    length = comet.Length(draws=6, epochs=1, file=tmp_path / "kept.jsonl")
    results = []
    for claim in comet.CLAIMS:
        run: Any = claim.run
        results.append(run((0,), lambda _: None, length=length))
        monkeypatch.setattr(comet, "fit", None)  # nothing is run twice
    assert [row["gate"] for row in results[0].table] == list(comet.GATES)
    assert all(r.table == results[0].table for r in results)
    assert results[0].table[0]["best of 12"] == "" != results[0].table[0]["best of 6"]
    assert 1 <= results[1].got <= 8 and results[2].got in (0, 1)


def test_best_of_b_is_the_mean_over_all_sets() -> None:
    tries = [{"val": v, "loss": x} for v, x in ((3, 1.0), (1, 5.0), (2, 2.0), (4, 9.0))]
    for count in (1, 2, 3, 4):
        every = [comet.picked(some)["loss"] for some in combinations(tries, count)]
        assert comet.best_of(tries, count) == pytest.approx(mean(every))
    assert comet.best_of(tries, 4) == comet.picked(tries)["loss"] == 5.0


def test_no_digit_both_trains_and_chooses() -> None:
    train, val = comet.parts(0)
    assert (len(train), len(val)) == (1000, 200)
    rows = [{tuple(x.tolist()) for x in part.tensors[0]} for part in (train, val)]
    assert not rows[0] & rows[1]


def test_all_gates_have_the_same_draws_and_seeds_have_others() -> None:
    assert comet.draws(0, 5)[:3] == comet.draws(0, 3) != comet.draws(1, 3)
    for drawn in comet.draws(2, 50):
        assert 1e-3 <= drawn.lr <= 3e-2 and 0.01 <= drawn.search <= 0.1
