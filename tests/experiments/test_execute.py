"""An experiment as data, carried out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from intarsia.core.errors import ConfigError, UnknownName
from intarsia.experiments.execute import carry_out
from intarsia.experiments.experiment import Experiment, Pictures
from intarsia.experiments.shared import Shared
from intarsia.train import Run, Running


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path_factory.mktemp("home")))


def run(data: str, shared: Shared | None = None, *, score: bool = True, **values: Any) -> Run:
    start = Experiment(Pictures(data, images=64, val=32, test=64)).changed(
        model="test_vit", size=32, pretrained=False, epochs=2, method="linear", frozen_once=True
    )
    return carry_out(start.changed(**values), Running(), lambda _: None, shared, score=score)


JOINT = "mini/synthetic-location+synthetic-orientation"


def test_joint_tasks_have_one_head_or_one_each() -> None:
    one = run(JOINT).record["results"]["test"]
    each = run(JOINT, objective="task_heads").record["results"]["test"]
    assert one["own_task_accuracy"] >= one["accuracy"]
    assert each["own_task_accuracy"] >= each["accuracy"]
    assert one["loss"] != each["loss"]
    smooth = run(JOINT, objective="task_heads+two_pass:add=1").record["results"]["test"]
    assert "own_task_accuracy" in smooth


def test_task_heads_want_several_tasks() -> None:
    with pytest.raises(ConfigError, match="one task"):
        run("mini/synthetic-location", objective="task_heads")
    with pytest.raises(UnknownName, match="plain"):
        run(JOINT, objective="task_heads+plane")


def test_labels_that_are_places_are_not_augmented() -> None:
    with pytest.raises(ConfigError, match="places, angles and counts"):
        run("mini/synthetic-location", augment="light", frozen_once=False)
    with pytest.raises(ConfigError, match="a crop or flip changes"):
        run("mini/elpv+synthetic-location", augment="light", frozen_once=False)


def test_the_last_blocks_of_a_baseline_are_in_the_record() -> None:
    found = [
        run("mini/synthetic-location", method="bitfit", frozen_once=False, **more).record["record"]
        for more in ({}, {"last_blocks": 1})
    ]
    said = [record["method"] for record in found]
    assert said == ["bitfit", {"method": "bitfit", "last_blocks": 1}]


def test_a_search_makes_nothing_of_the_test_part(tmp_path: Path) -> None:
    found = run("mini/synthetic-location", Shared(tmp_path), score=False)
    assert found.test is None and "test" not in found.record["data"]
    kinds = [path.name.partition("-")[0] for path in tmp_path.glob("*.safetensors")]
    assert sorted(kinds) == ["pixels", "pixels", "tokens", "tokens"]


def test_what_is_shared_changes_nothing(tmp_path: Path) -> None:
    data, shared = "mini/synthetic-location", Shared(tmp_path)
    alone = [
        run(data, method=m, frozen_once=m == "linear").record["results"]["test"]
        for m in ("linear", "full")
    ]
    for again in range(2):
        for method, want in zip(("linear", "full"), alone, strict=True):
            frozen = method == "linear"
            got = run(data, shared, method=method, frozen_once=frozen).record["results"]["test"]
            assert got["accuracy"] == want["accuracy"], again


def test_what_is_shared_is_made_once_and_few_are_held(tmp_path: Path) -> None:
    made: list[int] = []

    def make(n: int) -> int:
        made.append(n)
        return n

    shared = Shared(keep=2)
    for n in (1, 2, 1, 3, 1, 2):
        assert shared.get("kind", {"n": n}, lambda n=n: make(n)) == n
    assert made == [1, 2, 3, 2]
    assert shared.get("other", {"n": 1}, lambda: make(9)) == 9


def test_a_method_of_phases_is_carried_out_and_opened_again(tmp_path: Path) -> None:
    start = Experiment(Pictures("mini/synthetic-location", images=32, val=16, test=16)).changed(
        model="test_vit", size=32, pretrained=False, epochs=1, method="lt_sft",
        settings=("count=40",),
    )  # fmt: skip
    out = tmp_path / "run"
    done = carry_out(start, Running(out=out), lambda _: None)
    stored = json.loads((out / "adapter" / "adapter_config.json").read_text())
    counts = [int(entry.rpartition("=")[2]) for entry in stored["options"]["entries"]]
    assert stored["method"] == "sparse" and sum(counts) == 40
    assert done.record["record"]["method"]["method"] == "lt_sft"
    assert (out / "phases" / "1-all" / "run.json").is_file()
    again = carry_out(start, Running(out=out, resume=True), lambda _: None)
    assert again.record["results"]["test"] == done.record["results"]["test"]
