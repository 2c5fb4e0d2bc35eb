"""`intarsia auto`: chosen on validation, within its time, resumed, and looked at once on test."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image

from intarsia.bench import auto as autos
from intarsia.bench import choosing
from intarsia.bench.arms import arm
from intarsia.bench.auto import auto
from intarsia.bench.choosing import Cost
from intarsia.core.errors import CheckpointError, ConfigError, DataError, UnknownName
from intarsia.experiments import one_run
from intarsia.experiments.experiment import Experiment, Pictures
from intarsia.experiments.pool import TrialEnd
from intarsia.results.store import Store

SETTINGS: dict[str, Any] = {"model": "test_vit", "pretrained": False, "batch_size": 8, "val": 8}
SETTINGS |= {"methods": ("linear", "adaptformer"), "size": 32, "test": 6}
SETTINGS |= {"report": lambda _: None}


def photos(folder: Path, n: int = 14) -> Path:
    """Dark and light noise."""
    random = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            grey = 50 + 140 * label + random.integers(-20, 20, (36, 36, 3))
            Image.fromarray(grey.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "FIRST_EPOCHS", 1)
    monkeypatch.setattr(choosing, "MOST_EPOCHS", 4)


def test_the_best_on_validation_is_chosen_and_test_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bool] = []
    run = one_run.run

    def counted(inputs: Any) -> dict[str, Any]:
        found = run(inputs)
        looked.append("test" in found["results"])
        return found

    monkeypatch.setattr(choosing, "one_run", counted)
    monkeypatch.setattr(autos, "one_run", counted)
    out = tmp_path / "auto"
    found = auto(photos(tmp_path / "photos"), minutes=5, out=out, **SETTINGS)
    assert looked.count(True) == 1 and looked[-1]
    assert found.choice == max(found.rows, key=lambda row: row.score).experiment
    assert {row.name for row in found.rows} == {"linear", "adaptformer"}
    assert {row.experiment.training.epochs for row in found.rows} == {1, 2, 4}
    assert len({row.experiment.training.lr for row in found.rows}) > 1  # neighbours in rate
    # the run that counts is that of the search, to the bit
    record = json.loads((found.folder / "run.json").read_text())
    assert record["results"]["val"] == dict(found.rows[0].val)
    assert record["results"]["test"] == dict(found.test)
    assert found.open().evaluate()["accuracy"] == found.test["accuracy"]
    text = str(found)
    assert "chosen" in text and "Test balanced" in text and "6 test pictures" in text
    assert found.report is not None and "looked at once" in found.report.read_text()
    # a finished search is read, not run
    looked.clear()
    again = auto(out=out, resume=True, report=lambda _: None)
    assert not looked and (again.choice, again.test) == (found.choice, found.test)


def test_a_killed_search_goes_on_to_the_same_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = photos(tmp_path / "photos"), tmp_path / "auto"
    run, calls = one_run.run, list[str]()

    def killed(inputs: Any) -> dict[str, Any]:
        calls.append(inputs["folder"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(inputs)

    monkeypatch.setattr(choosing, "one_run", killed)
    with pytest.raises(KeyboardInterrupt):
        auto(data, minutes=5, out=out, **SETTINGS)
    done = set(Store(out / "search.jsonl").rows)
    with pytest.raises(ConfigError, match="resume=True"):
        auto(data, minutes=5, out=out, **SETTINGS)
    found = auto(out=out, resume=True, report=lambda _: None)
    assert done < set(Store(out / "search.jsonl").rows)
    assert len(calls) == len(set(calls)) + 1  # only the one that was killed ran twice
    assert found.choice.adapted.size == 32 and found.folder == out / "choice"


def test_a_search_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    out = tmp_path / "auto"
    out.mkdir()
    stored = {"minutes": 5, "seed": 0, "methods": ["linear"], "size": 32, "data": str(tmp_path)}
    (out / "auto.json").write_text(json.dumps(stored))
    same = {"size": 32, "precision": "fp32", "methods": ["linear"], "minutes": 5, "seed": 0}
    assert autos._opened(tmp_path, out, same, True) == (out, stored)
    other: list[dict[str, Any]] = [{"size": 48}, {"skip_unreadable": True}, {"minutes": 30}]
    for now in other:
        with pytest.raises(ConfigError, match="it for a search with.*Leave it out to go on"):
            autos._opened(None, out, {"minutes": 10, "seed": 0} | now, True)
    with pytest.raises(ConfigError, match="data = .*it for a search with"):
        autos._opened("elpv", out, {"minutes": 10}, True)
    (out / "auto.json").write_text('{"minutes": 5')
    with pytest.raises(CheckpointError, match=r"auto\.json.*Begin another"):
        autos._opened(None, out, {"minutes": 10}, True)


def test_data_that_cannot_be_read_leave_no_search_behind(tmp_path: Path) -> None:
    data, out = photos(tmp_path / "photos", n=4), tmp_path / "auto"
    (data / "dark" / "bad.png").write_text("no picture")
    for _ in range(2):  # the second time is not told to go on with the first
        with pytest.raises(DataError, match="on_error='skip'"):
            auto(data, out=out, **SETTINGS)
    assert not out.exists()


def test_little_time_tries_less(tmp_path: Path) -> None:
    found = auto(photos(tmp_path / "photos"), minutes=1e-6, out=tmp_path / "a", **SETTINGS)
    assert [row.experiment.training.epochs for row in found.rows] == [1]
    assert found.test["accuracy"] >= 0
    assert "Only one candidate" in str(found)


@given(
    each=st.floats(0.001, 0.3),
    once=st.floats(0, 0.2),
    beside=st.floats(0.5, 20),
    minutes=st.floats(0.5, 30),
    fails=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_the_minutes_hold_within_a_quarter_if_one_epoch_fits(
    each: float, once: float, beside: float, minutes: float, fails: bool
) -> None:
    counts = (400, 60, 100)

    def took(flat: dict[str, Any]) -> float:
        images, val = flat["images"] or counts[0], flat["val"] or counts[1]
        first = (images + val) * once
        return first + flat["epochs"] * (images + choosing.SCORING * val) * each

    def fake(trials: Any, *_: Any, done: Any, **__: Any) -> None:
        for trial in trials:
            flat = trial.inputs["experiment"]
            seconds = took(flat)
            images, val = flat["images"] or counts[0], flat["val"] or counts[1]
            found = {"val": {"accuracy": 0.5, "loss": 1.0}, "seconds": seconds}
            found["seconds_once"] = (images + val) * once
            bad = fails and "linear" in trial.name
            result = None if bad else {"results": found}
            done(TrialEnd(trial, result, "no" if bad else "", 0.1 if bad else seconds + beside))

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "run_trials", fake)
        patch.setattr(choosing, "FIRST_EPOCHS", 5)
        start = Experiment(Pictures("x")).changed(size=32)
        arms = [arm("linear"), arm("adaptformer")]
        told = list[str]()
        search = choosing.Search(
            start, arms, [32], counts, 60 * minutes, Path(folder), told.append, {}
        )
        best = search.run()[0]
        look = search._last_look(best.experiment)
        pilot = beside + took({"images": 64, "val": 60, "epochs": choosing.PILOT_EPOCHS})
        least = pilot + beside + took({"images": None, "val": None, "epochs": 1}) + look
        event("one epoch fits" if least < 60 * minutes else "it does not")
        if least < 60 * minutes:
            assert search.spent + look <= 1.25 * 60 * minutes
        else:
            assert [row.experiment.training.epochs for row in search.best] == [1]
        cut = search.best[-1].experiment.training.epochs < 5 or best.experiment.training.epochs < 5
        assert cut == any("gets" in line for line in told)


def test_what_a_run_costs() -> None:
    cost = Cost(overhead=2.0, once=0.5, each=0.1)
    fresh = cost.of(100, 20, 5)
    assert fresh - cost.of(100, 20, 5, fresh=False) == pytest.approx(60.0)
    assert cost.of(100, 20, 10) - fresh == pytest.approx(5 * (100 + choosing.SCORING * 20) * 0.1)


def test_sizes_are_those_that_the_model_can_take() -> None:
    start = autos._start({"data": "x", "seed": 0, "model": "test_vit", "pretrained": False})
    assert start.adapted.frozen_once and start.adapted.last_blocks == autos.LAST_BLOCKS
    sizes = autos._sizes(start)
    assert sizes == sorted(sizes) and all(size % 16 == 0 and size <= 160 for size in sizes)
    assert autos._sizes(start.changed(size=64)) == [64]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"minutes": 0}, ConfigError, "minutes"),
        ({"epochs": 3}, ConfigError, "it is chosen"),
        ({"sizes": 3}, UnknownName, "Did you mean size"),
        ({"methods": ("nosuch",)}, UnknownName, "nosuch"),
        ({"device": "gpu"}, ConfigError, "cuda:1"),
        ({"resume": True}, ConfigError, "none to go on with"),
        ({"val": 0}, ConfigError, "everything is chosen on it"),
    ],
)
def test_what_cannot_be(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    data = photos(tmp_path / "photos", n=4)
    with pytest.raises(error, match=says):
        auto(data, out=tmp_path / "a", **(SETTINGS | options))
    with pytest.raises(ConfigError, match="a text"):
        auto("austen", out=tmp_path / "b")
