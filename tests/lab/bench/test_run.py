"""The runner: each place once, errors recorded, killed at any moment and none the wiser."""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from intarsia.core.errors import CheckpointError, ConfigError
from intarsia.runs.choosing.arms import arm
from intarsia.runs.searching import SEARCHES
from intarsia_lab.bench.folder import PLAN, RESULTS
from intarsia_lab.bench.protocols import protocol
from intarsia_lab.bench.report import records
from intarsia_lab.bench.run import How, measured, run_plan

from ...refusals import refused
from ...toys import quiet
from . import toys

ONE = How(executor="here")


def test_every_place_has_a_result_and_is_run_once(tmp_path: Path) -> None:
    plan = toys.plan()
    results = run_plan(plan, tmp_path, ONE, quiet, toys.work)
    places = [(p.task.name, p.arm.name, p.seed) for p in plan.places()]
    assert [(r.task.name, r.method.name, r.seed) for r in results] == places
    assert len({r.key for r in results}) == len(places) == 18
    again = run_plan(plan, tmp_path, ONE, quiet, toys.work)
    assert again == results
    assert all(ran.read_text() == "x" for ran in tmp_path.rglob("ran"))
    extended = run_plan(replace(plan, seeds=(0, 1, 2)), tmp_path, ONE, quiet, toys.work)
    assert {r.key for r in results} < {r.key for r in extended}
    assert all((tmp_path / r.folder / "ran").read_text() == "x" for r in extended)


def test_a_run_of_another_plan_is_told_as_this_plan_s(tmp_path: Path) -> None:
    """A probe trains no block, so that it is the same run whatever blocks the others train."""
    only = toys.plan(seeds=(0,), tasks=toys.TOYS.tasks[:1], arms=(arm("linear"),))
    blocks = [replace(only, start=only.start.changed(last_blocks=n)) for n in (2, 3)]
    first, second = (run_plan(plan, tmp_path, ONE, quiet, toys.work)[0] for plan in blocks)
    assert first.key == second.key and first.outcome == second.outcome
    assert [first.setup.model, second.setup.model] == [plan.model for plan in blocks]
    assert first.setup.model != second.setup.model
    assert (tmp_path / first.folder / "ran").read_text() == "x"


def test_a_failed_run_is_recorded_and_tried_again(tmp_path: Path) -> None:
    plan = toys.plan(seeds=(0,))
    marks = [tmp_path / "runs" / t.name / "bad" for t in plan.tasks]
    for mark in marks:
        mark.parent.mkdir(parents=True)
        mark.touch()
    results = run_plan(plan, tmp_path, ONE, quiet, toys.work)
    bad = [r for r in results if r.status == "failed"]
    assert {r.method.name for r in bad} == {"mosa"} and len(bad) == 3
    assert isinstance(bad[0].outcome, records.Failed)
    assert bad[0].outcome.error == "loss at step 3: got nan, want a number. Lower lr."
    for mark in marks:
        mark.unlink()
    again = run_plan(plan, tmp_path, replace(ONE, again=False), quiet, toys.work)
    assert again == results
    mended = run_plan(plan, tmp_path, ONE, quiet, toys.work)
    assert all(r.status == "done" for r in mended)


@pytest.mark.thorough
def test_a_process_that_dies_costs_its_own_run_only(tmp_path: Path) -> None:
    plan = toys.plan(seeds=(0,), tasks=toys.TOYS.tasks[:1])
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "deadly").touch()
    schedule = How(
        jobs=2, executor="fresh", threads=1
    )  # forked: dying itself is tried in test_pool
    results = {r.method.name: r for r in run_plan(plan, tmp_path, schedule, quiet, toys.work)}
    assert results["linear"].status == results["mosa"].status == "done"
    dead = results["adaptformer"].outcome
    assert isinstance(dead, records.Failed) and "memory ran out" in dead.error


def test_a_search_chooses_on_validation_and_is_counted(tmp_path: Path) -> None:
    plan = toys.plan("tuned", seeds=(0,), tasks=toys.TOYS.tasks[:1])
    (_, result, *_) = run_plan(plan, tmp_path, ONE, quiet, toys.work)
    (_, place, *_) = plan.places()
    scored = []
    for run in plan.search(place):
        flat = run.flat()
        assert flat["data"] == "toys/one" and flat["val"] is None
        inputs = {"experiment": flat, "folder": str(tmp_path / "check")}
        scored.append((toys.work(inputs)["results"]["val"]["accuracy"], flat))
    best = max(scored, key=lambda s: s[0])[1]
    assert result.setup.selected == {name: best[name] for name in ("lr", "weight_decay")}
    assert result.setup.tried == len(scored) == 6
    assert result.setup.search_seconds == pytest.approx(6 * 0.5)
    final = plan.final(place).flat()
    assert final["data"] == "toys/one@train+val" and final["val"] == 0


def test_one_rate_of_a_method_is_chosen_for_all_tasks_from_one_grid(tmp_path: Path) -> None:
    plan, ran = toys.plan("even", seeds=(0, 1, 2, 3)), list[dict[str, Any]]()

    def work(inputs: Mapping[str, Any]) -> dict[str, Any]:
        ran.append(dict(inputs))
        return toys.work(inputs)

    results = run_plan(plan, tmp_path, ONE, quiet, work)
    rules = plan.protocol
    assert rules.chosen_on is not None
    tasks = rules.chosen_on.tasks
    searched = [r for r in ran if not r["test"]]
    grid = sorted({r["experiment"]["lr"] for r in searched})
    assert set(rules.grid["lr"]) <= set(grid)  # it grows for all while an edge wins for one
    rivals = plan.arms[1:]  # the first is a probe, which has no rate
    assert len(searched) == len(rivals) * len(tasks) * len(grid)
    assert len(plan.searches()) == len(rivals) * len(tasks) * len(rules.grid["lr"])
    for rival in rivals:
        ours = [r for r in searched if r["experiment"]["method"] == rival.settings.method]
        assert {(r["experiment"]["data"], r["experiment"]["seed"]) for r in ours} == {
            (task, 100) for task in tasks
        }
        by_rate = {
            rate: sum(toys.work(r)["results"]["val"]["accuracy"]
                      for r in ours if r["experiment"]["lr"] == rate)
            for rate in grid
        }  # fmt: skip
        best = max(grid, key=lambda rate: by_rate[rate])
        rows = [r for r in results if r.method.name == rival.name]
        assert len(rows) == 12 and all(r.setup.selected == {"lr": best} for r in rows)
        # the cost of the one search, shared out
        assert sum(r.setup.search_seconds for r in rows) == pytest.approx(0.5 * len(ours))
    finals = [r["experiment"] for r in ran if r["test"]]
    # validation is left out of training, for a temperature; nothing is trained at a search's seed
    assert all("@" not in flat["data"] and flat["val"] is None for flat in finals)
    # whole seeds first
    assert [flat["seed"] for flat in finals] == [*sorted([0, 1] * 9), *sorted([2, 3] * 9)]


def test_a_grid_grows_for_all_methods_while_an_edge_of_it_wins_for_one(tmp_path: Path) -> None:
    """MoSA is best at a rate far beyond the grid, the others inside of it; a probe has no rate."""
    ran = list[dict[str, Any]]()

    def work(inputs: Mapping[str, Any]) -> dict[str, Any]:
        ran.append(dict(inputs))
        flat, results = inputs["experiment"], toys.work(inputs)
        if "val" in results["results"]:
            best = 0.3 if flat["method"] == "mosa" else 1e-3
            right = 0.9 - 0.1 * abs(math.log10((flat["lr"] or best) / best))
            results["results"]["val"] = results["results"]["val"] | {"accuracy": right}
        return results

    plan = toys.plan("even", seeds=(0,), tasks=toys.TOYS.tasks[:1])
    results = run_plan(plan, tmp_path, ONE, quiet, work)
    (probe, *searched) = results
    assert probe.method.name == "linear" and not probe.setup.tried
    rates = {r.method.name: r.setup.selected["lr"] for r in searched}
    assert rates == {"adaptformer": 1e-3, "mosa": 0.3}
    grid = (*plan.protocol.grid["lr"], 0.1, 0.3, 1.0)
    for rival in plan.arms[1:]:
        ours = {r["experiment"]["lr"] for r in ran if not r["test"]
                and r["experiment"]["method"] == rival.settings.method}  # fmt: skip
        assert ours == set(grid)
    assert all(r.setup.tried == 3 * len(grid) for r in searched)
    # the limit of the search holds
    on = plan.protocol.chosen_on
    assert on is not None
    near = replace(plan.protocol, chosen_on=replace(on, reach=(1e-4, 0.1)))
    (*_, mosa) = run_plan(replace(plan, protocol=near), tmp_path / "near", ONE, quiet, work)
    assert mosa.setup.selected == {"lr": 0.1}
    # a search that each place has for itself does not grow: its rates are multiples of the arm's
    tuned = toys.plan("tuned", seeds=(0,), tasks=toys.TOYS.tasks[:1])
    (*_, mosa) = run_plan(tuned, tmp_path / "tuned", ONE, quiet, work)
    assert mosa.setup.tried == 6


def test_the_temperature_of_a_search_is_that_of_the_run_it_chooses(tmp_path: Path) -> None:
    def work(inputs: Mapping[str, Any]) -> dict[str, Any]:
        results = toys.work(inputs)
        if "val" in results["results"]:
            results["results"]["temperature"] = results["results"]["val"]["accuracy"] + 1
        else:
            temperatures.append(inputs["temperature"])
        return results

    temperatures: list[float | None] = []
    for rules in ("tuned", "honest"):
        plan = toys.plan(rules, seeds=(0,), tasks=toys.TOYS.tasks[:1])
        run_plan(plan, tmp_path / rules, ONE, quiet, work)
    best = [
        max(toys.work({"experiment": run.flat(), "folder": str(tmp_path / "x"), "test": False})
            ["results"]["val"]["accuracy"] for run in plan.search(place)) + 1
        for plan in [toys.plan("tuned", seeds=(0,), tasks=toys.TOYS.tasks[:1])]
        for place in list(plan.places())[1:]
    ]  # fmt: skip
    # a probe that is fitted to convergence has no search
    assert temperatures == [None, *best, None, None, None]
    temperatures.clear()
    plan = replace(plan, protocol=replace(plan.protocol, calibrate=True))
    results = run_plan(plan, tmp_path / "calibrated", ONE, quiet, work)
    assert (
        len(temperatures) == 3
        and None not in temperatures
        and all(not r.setup.selected for r in results)
    )


def astray(part: str, name: str, methods: tuple[str, ...] = ("mosa",)) -> Any:
    """The toys' work, but for a score that is no number."""

    def work(inputs: Mapping[str, Any]) -> dict[str, Any]:
        result = toys.work(inputs)
        if inputs["experiment"]["method"] in methods and part in result["results"]:
            result["results"][part] = result["results"][part] | {name: float("nan")}
        return result

    return work


@pytest.mark.parametrize("name", ["loss", "accuracy", "balanced_accuracy"])
def test_a_score_that_is_no_number_is_a_failed_run(tmp_path: Path, name: str) -> None:
    plan, messages = toys.plan(seeds=(0,)), []
    for _ in range(2):  # and is one again when the runner is started again
        results = run_plan(plan, tmp_path, ONE, messages.append, astray("test", name))
        bad = [r for r in results if r.status == "failed"]
        assert {r.method.name for r in bad} == {"mosa"} and len(results) - len(bad) == 6
        assert isinstance(bad[0].outcome, records.Failed)
        assert f"{name} of test: got nan, want a finite number" in bad[0].outcome.error
    assert any("one, mosa, seed 0: FAILED" in line for line in messages)


def test_a_score_out_of_bounds_is_a_failed_run() -> None:
    scores = {"accuracy": 1.5, "balanced_accuracy": 0.5, "loss": 1.0}
    costs = {"seconds": 1.0, "cpu_seconds": 1.0, "peak_bytes": {}}
    counts = {"trained": 2, "trained_without_head": 1}
    outcome = measured({"results": {"test": scores, **costs}, "parameters": counts})
    assert isinstance(outcome, records.Failed) and "accuracy" in outcome.error


def test_a_search_that_goes_astray_chooses_among_the_others(tmp_path: Path) -> None:
    plan, messages = toys.plan("tuned", seeds=(0,), tasks=toys.TOYS.tasks[:1]), []
    results = run_plan(plan, tmp_path, ONE, messages.append, astray("val", "loss"))
    outcome = {r.method.name: r.outcome for r in results}
    assert isinstance(outcome["linear"], records.Done)
    assert isinstance(outcome["mosa"], records.Failed)
    assert "every run of its search failed: loss of val: got nan" in outcome["mosa"].error
    rows = [json.loads(x) for x in (tmp_path / SEARCHES).read_text().splitlines()]
    assert sum("error" in row for row in rows) == 6 and len(rows) == 12
    assert run_plan(plan, tmp_path, ONE, messages.append, toys.work)[-1].status == "done"


def test_only_one_runner_works_in_a_folder(tmp_path: Path) -> None:
    with (
        FileLock(str(tmp_path.with_name(f".{tmp_path.name}.lock"))),
        refused(ConfigError, got="a name that another process works on"),
    ):
        run_plan(toys.plan(), tmp_path, ONE, quiet, toys.work)


def test_a_folder_of_another_protocol_is_refused(tmp_path: Path) -> None:
    results = run_plan(toys.plan(), tmp_path, ONE, quiet, toys.work)
    with refused(ConfigError, got="protocol honest"):
        run_plan(toys.plan("tuned"), tmp_path, ONE, quiet, toys.work)
    assert run_plan(toys.plan(), tmp_path, ONE, quiet, toys.work) == results


@pytest.mark.parametrize("text", ['{"format": 99, "intarsia": "9.9"}', "{", "[1]"])
def test_a_folder_of_another_version_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / PLAN).write_text(text)
    with pytest.raises(CheckpointError):
        run_plan(toys.plan(), tmp_path, ONE, quiet, toys.work)
    assert (tmp_path / PLAN).read_text() == text


def test_what_cannot_be_planned_is_refused() -> None:
    with refused(ConfigError, what="seeds"):
        toys.plan(seeds=(0, 0))
    with refused(ConfigError, what="method 'linear' under protocol 'official'"):
        toys.plan("official")
    assert toys.plan(arms=(arm("mosa"),), protocol=protocol("official"))


@pytest.mark.thorough
@pytest.mark.parametrize("rules", ["honest", "tuned"])
def test_killed_at_random_it_ends_the_same(
    tmp_path: Path, forked: Callable[..., Any], rules: str
) -> None:
    want = run_plan(toys.plan(rules), tmp_path / "whole", ONE, quiet, toys.work)
    out = tmp_path / "killed"
    for name in ("one", "two", "three"):
        (out / "runs" / name).mkdir(parents=True)
        (out / "runs" / name / "slow").touch()
    chance, ends = random.Random(0), list[int]()
    for _ in range(3):
        begun = _lines(out)
        runner = forked(Path(toys.__file__), out, rules).process
        deadline = time.monotonic() + 60
        while _lines(out) < begun + chance.randint(1, 4) and time.monotonic() < deadline:
            if not runner.is_alive():
                break
            time.sleep(0.01)
        runner.kill()
        runner.join()
        ends.append(runner.exitcode)
    assert -signal.SIGKILL in ends
    results = run_plan(toys.plan(rules), out, ONE, quiet, toys.work)
    assert results == want
    rows = [json.loads(x) for x in (out / RESULTS).read_text().splitlines()]
    assert len(rows) == len(want)


def _lines(out: Path) -> int:
    return sum(len(p.read_bytes().splitlines()) for p in out.glob("*.jsonl"))


def test_each_run_is_told_its_device(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = []

    def work(inputs: Any) -> dict[str, Any]:
        settings.append(inputs["running"])
        return toys.work(inputs)

    run_plan(toys.plan(), tmp_path, How(executor="here", device="cpu"), lambda _: None, work)
    assert settings and all(running == {"device": "cpu"} for running in settings)
