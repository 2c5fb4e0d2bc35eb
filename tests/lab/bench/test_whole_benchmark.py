"""A real run of the benchmark: the same as without the runner, and its folder goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from intarsia.runs import one_run
from intarsia.runs.choosing.arms import arm
from intarsia.runs.choosing.arms import by_task as with_heads
from intarsia.runs.execute import carry_out
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.train import Running
from intarsia_lab.bench import tables, write
from intarsia_lab.bench.plan import BenchPlan
from intarsia_lab.bench.protocols import protocol
from intarsia_lab.bench.publish import as_markdown
from intarsia_lab.bench.report import records
from intarsia_lab.bench.run import How, run_plan
from intarsia_lab.materials.suites import find, suite

HERE = How(executor="here")


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BenchPlan:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path / "home"))
    one_run.shared_in.cache_clear()
    mini = suite("mini")
    start = Experiment(Pictures("", images=0.1, test=64)).changed(
        model="test_vit", size=32, pretrained=False, epochs=1, last_blocks=2, frozen_once=True
    )
    names = ("linear", "adaptformer", "mosa")
    return BenchPlan(
        mini, (mini.task("synthetic-location"),), tuple(map(arm, names)), (0,),
        protocol("honest"), start,
    )  # fmt: skip


@pytest.mark.thorough
def test_a_run_is_what_fit_gives_without_the_runner(plan: BenchPlan, tmp_path: Path) -> None:
    results = run_plan(plan, tmp_path / "out", HERE, lambda _: None)
    for place, result in zip(plan.places(), results, strict=True):
        alone = carry_out(plan.final(place), Running(), lambda _: None)
        assert isinstance(result.outcome, records.Done) and alone.test is not None
        assert result.outcome.accuracy == alone.test.accuracy
        assert result.outcome.loss == pytest.approx(alone.test.loss, rel=1e-6)
        assert result.outcome.trained == alone.record["parameters"]["trained"]
        record = json.loads((tmp_path / "out" / result.folder / "run.json").read_text())
        data = record["record"]["data"]
        assert data["spec"] == "mini/synthetic-location@train+val" and "val" not in data["parts"]
        assert data["parts"]["train"]["n"] == 96  # of each of 16 classes, 6 of 62 or 63
    shared = {p.name.partition("-")[0] for p in (tmp_path / "out" / "shared").glob("*.safetensors")}
    assert shared == {"pixels", "tokens"}


@pytest.mark.parametrize("by_task", [False, True])
def test_joint_tasks_are_scored_by_their_own_task_too(
    plan: BenchPlan, tmp_path: Path, by_task: bool
) -> None:
    joint = find("mini/synthetic-location+synthetic-orientation")
    assert joint is not None
    arms = [with_heads(c) if by_task else c for c in plan.arms]
    both = replace(plan, tasks=(joint[1],), arms=tuple(arms))
    results = run_plan(both, tmp_path / "out", HERE, lambda _: None)
    for result in results:
        assert isinstance(result.outcome, records.Done), result.outcome
        accuracy = result.outcome.own_task_accuracy
        assert accuracy is not None and accuracy >= result.outcome.accuracy
        experiment = json.loads((tmp_path / "out" / result.folder / "experiment.json").read_text())
        assert experiment["objective"] == ("task_heads" if by_task else "plain")
    assert records.read(tmp_path / "out" / "results.jsonl") == results
    assert "| Own task |" in as_markdown(tables(results, "adaptformer"))


def test_the_published_recipe_runs(plan: BenchPlan, tmp_path: Path) -> None:
    joint = find("mini/synthetic-location+synthetic-orientation")
    assert joint is not None
    official = replace(
        plan, tasks=(*plan.tasks, joint[1]), arms=(arm("mosa"),),
        protocol=protocol("official"),
    )  # fmt: skip
    for result in run_plan(official, tmp_path / "out", HERE, lambda _: None):
        assert isinstance(result.outcome, records.Done), result.outcome
        cells = json.loads((tmp_path / "out" / result.folder / "run.json").read_text())
        settings = cells["record"]["method"]
        assert settings["experts"] == (2 if "+" in result.task.name else 4)


def test_results_become_tables_and_a_page(plan: BenchPlan, tmp_path: Path) -> None:
    longer = replace(plan, seeds=(0, 1))
    results = run_plan(longer, tmp_path / "out", HERE, lambda _: None)
    summary = tables(results, "adaptformer")
    assert len(summary.results) == 6 and not summary.failed
    written = {p.name for p in write(results, tmp_path / "out", baseline="adaptformer")}
    assert {"index.html", "table.md", "table.tex", "results.csv"} <= written
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["suite"] == "mini"


def test_a_search_never_looks_at_the_test_part(plan: BenchPlan, tmp_path: Path) -> None:
    tuned = replace(plan, arms=(arm("bitfit"),), protocol=protocol("tuned"))
    messages: list[str] = []
    run_plan(tuned, tmp_path, HERE, messages.append)
    records = [json.loads(p.read_text())["results"] for p in tmp_path.rglob("run.json")]
    assert sorted("test" in r for r in records) == [False] * 6 + [True]
    assert (
        sum("of val" in line for line in messages) == 6
        and sum("of test" in line for line in messages) == 1
    )
    for result in records:
        assert result["cpu_seconds"] > 0 and result["seconds"] > result["seconds_once"] > 0
