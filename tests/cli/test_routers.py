"""compare-routers: cells that are kept, one table, one page; what makes no sense is refused."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path
from typing import Any

import pytest

from intarsia.data import corpora
from intarsia.data.small_models import SmallModel
from intarsia_lab.cli import router_steps as routing
from intarsia_lab.routing import Scale, cells, materials

from .conftest import Intarsia

SCALE = Scale(SmallModel(8, 2, 2, 8), batch=4, steps=6, length=8, vocabulary=260, test=16)


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus "toy", a toy model, a cache of its own, and cells in this process."""
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path / "home"))
    text = "The cat sat on 12 mats, and Tom ran.\n" * 1000
    monkeypatch.setattr(materials, "SEGMENT", 256)
    monkeypatch.setitem(corpora.CORPORA, "toy", corpora.Corpus(lambda _: text, "a toy"))
    monkeypatch.setattr(routing, "TEXT", SCALE)
    monkeypatch.setattr(routing, "cells", functools.partial(cells, executor="here"))


def test_one_table_one_page_and_cells_that_are_kept(intarsia: Intarsia, tmp_path: Path) -> None:
    words = ("compare-routers", "toy", "--routers", "dense,topk,switch", "--seeds", "0,1",
             "--budget", "both", "--out", tmp_path / "c")  # fmt: skip
    result = intarsia(*words)
    assert result.code == 0, result.err
    assert "12 cells" in result.words and "about" in result.words
    assert "Toy at equal steps" in result.out and "Toy at equal operations" in result.out
    assert "baseline" in result.out and "Report:" in result.out
    assert (tmp_path / "c" / "routers.html").read_text().startswith("<!")
    assert "| switch " in (tmp_path / "c" / "routers.md").read_text()
    assert len(json.loads((tmp_path / "c" / "results.json").read_text())) == 12
    with (tmp_path / "c" / "results.csv").open() as file:
        assert {row["steps"] for row in csv.DictReader(file) if row["budget"] == "steps"} == {"6"}
    again = intarsia(*words, "--json")
    assert again.code == 0 and "test loss" not in again.err  # nothing runs twice
    rows = again.json["rows"]
    assert len(rows) == 12 and {row["baseline"] for row in rows} == {"topk"}
    spent = [row["operations_ratio"] for row in rows if row["budget"] == "flops"]
    assert all(0.8 < ratio < 1.2 for ratio in spent)


def test_steps_and_baseline(intarsia: Intarsia, tmp_path: Path) -> None:
    result = intarsia("compare-routers", "toy", "--routers", "hash,dense", "--seeds", "3",
                    "--steps", "2", "--baseline", "dense", "--out", tmp_path / "c",
                    "--json")  # fmt: skip
    assert result.code == 0, result.err
    assert [(r["contender"], r["steps"], r["baseline"]) for r in result.json["rows"]] == [
        ("hash", 2, "dense"), ("dense", 2, "dense"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--routers topk,comett", "Did you mean comet"),
        ("--routers topk,topk", "each once"),
        ("--routers topk --seeds 0,0", "each once"),
        ("--routers topk --seeds 0,x", "several with commas"),
        ("--routers topk --budget time", "one of ('steps', 'flops', 'both')"),
        ("--routers topk,dense --baseline hash", "unknown --baseline"),
        ("--routers expert_choice", "--sees-later"),
        ("--routers topk --steps 0", "--steps"),
        ("--routers topk --jobs 0", "--jobs"),
        ("--routers ,", "at least one"),
    ],
)
def test_what_cannot_be_runs_nothing(
    intarsia: Intarsia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = intarsia("compare-routers", "toy", *words.split())
    assert result.code == 2 and says in result.words, result.err
    assert not (tmp_path / "runs").exists() and not (tmp_path / "home").exists()


def test_unknown_data(intarsia: Intarsia) -> None:
    result = intarsia("compare-routers", "austin", "--routers", "topk")
    assert result.code == 2 and "Did you mean austen" in result.words


def test_ctrl_c_says_how_to_go_on(intarsia: Intarsia, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(routing, "cells", stopped)
    result = intarsia("compare-routers", "toy", "--routers", "topk")
    assert result.code == 130 and "same command again" in result.words
