"""A budget cuts seeds, then epochs, and says so; below that it refuses."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from intarsia.core.errors import ConfigError, TrainingError
from intarsia.core.plugins import TASKS, plugins
from intarsia.data import ImageSet
from intarsia.runs.choosing.arms import arm
from intarsia.runs.execute import pictures_of
from intarsia.runs.experiment import Experiment
from intarsia_lab.bench.budget import (
    FEWEST_EPOCHS,
    SCORING,
    SETTING_UP,
    estimated,
    fitted,
    measured_costs,
    minutes,
    piloting,
)
from intarsia_lab.bench.protocols import Protocol
from intarsia_lab.bench.run import How
from intarsia_lab.materials import suites

from ...refusals import refused
from . import toys

COSTS = {"linear": 0.001, "adaptformer": 0.01, "mosa": 0.01}


def test_what_fits_is_left_alone() -> None:
    plan = toys.plan()
    needed = minutes(plan, COSTS, 1) + piloting(plan, COSTS, 1)
    assert fitted(plan, COSTS, needed, 1) == plan
    assert fitted(plan, COSTS, needed - 0.01, 1) != plan


def test_seeds_go_before_epochs() -> None:
    plan = toys.plan()
    pilots = piloting(plan, COSTS, 1)
    fitting_plan = fitted(plan, COSTS, 0.6 * minutes(plan, COSTS, 1) + pilots, 1)
    assert (
        fitting_plan.seeds == (0,)
        and fitting_plan.start == plan.start
        and "seed 1" in fitting_plan.cut[0]
    )
    less = fitted(plan, COSTS, 0.3 * minutes(plan, COSTS, 1) + pilots, 1)
    assert less.seeds == (0,) and less.start.training.epochs < plan.start.training.epochs
    assert len(less.cut) == 2 and "epochs in place of 20" in less.cut[1]


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3, 0.2])
def test_the_smaller_plan_fits(share: float) -> None:
    plan = toys.plan("tuned")
    budget, pilots = share * minutes(plan, COSTS, 2), piloting(plan, COSTS, 2)
    assert minutes(fitted(plan, COSTS, budget + pilots, 2), COSTS, 2) <= budget * 1.02


def test_what_cannot_fit_is_refused() -> None:
    with refused(ConfigError, what="--budget"):
        fitted(toys.plan(), COSTS, 0.1, 1)
    assert FEWEST_EPOCHS >= 1


def test_costs_come_from_pilots(tmp_path) -> None:
    costs = measured_costs(toys.plan(), tmp_path, How(executor="here"), lambda _: None, toys.work)
    assert set(costs) == set(COSTS)
    assert all(cost == pytest.approx(0.5 / (64 * 20)) for cost in costs.values())
    again = measured_costs(toys.plan(), tmp_path, How(executor="here"), lambda _: None, toys.work)
    assert again == costs
    assert {ran.read_text() for ran in (tmp_path / "pilots").rglob("ran")} == {"x"}


def test_pilots_of_a_few_shots(tmp_path) -> None:
    plan = toys.plan()
    plan = replace(plan, start=plan.start.changed(shots=5))
    flats = []

    def work(inputs):
        flats.append(inputs["experiment"])
        assert Path(inputs["folder"]).is_absolute() and Path(inputs["shared"]).is_absolute()
        return toys.work(inputs)

    measured_costs(plan, tmp_path, How(executor="here"), lambda _: None, work)
    assert {(flat["images"], flat["shots"]) for flat in flats} == {(64, None)}


def flats_of(plan, out) -> dict[str, dict]:
    """The pilots' experiments, by method."""
    flats = {}

    def work(inputs):
        flats[inputs["experiment"]["method"]] = inputs["experiment"]
        return toys.work(inputs)

    measured_costs(plan, out, How(executor="here"), lambda _: None, work)
    return flats


def test_pilots_of_many_classes_take_no_more_than_there_is(tmp_path) -> None:
    wide = replace(toys.TOYS.tasks[0], classes=900, counts={"train": 800, "val": 200, "test": 700})
    flats = flats_of(toys.plan(tasks=(wide,)), tmp_path / "many")
    assert {(flat["images"], flat["test"]) for flat in flats.values()} == {(1000, 700)}
    some = replace(wide, classes=300)
    flats = flats_of(toys.plan(tasks=(some,)), tmp_path / "some")
    assert {(flat["images"], flat["test"]) for flat in flats.values()} == {(600, 600)}


def test_classes_with_a_single_image_are_drawn(monkeypatch, tmp_path) -> None:
    """VTAB-1k's SUN397 has such classes: 1,000 images of 397 classes."""
    train_rows, test_rows = (
        np.r_[0:397, 0:200, 0:203],
        np.r_[0:397, 0:396, 0:396],
    )  # of class 396 one
    labels = {"train": train_rows, "val": np.r_[0:200], "test": test_rows}
    noise = np.random.default_rng(0)

    def parts(_):
        names = tuple(map(str, range(397)))
        return {
            part: ImageSet(part, noise.integers(0, 255, (len(rows), 4, 4), np.uint8), rows, names)
            for part, rows in labels.items()
        }

    counts = {part: len(rows) for part, rows in labels.items()}
    task = replace(toys.TOYS.tasks[0], classes=397, counts=counts, read=parts)
    suite = replace(toys.TOYS, tasks=(task,))
    flats = flats_of(toys.plan(suite=suite, tasks=(task,)), tmp_path)
    entry = EntryPoint("toys", "intarsia_lab.materials.suites:published_task", TASKS)
    monkeypatch.setitem(plugins(TASKS), "toys", entry)
    monkeypatch.setitem(suites.MODULES, "toys", "toys")
    monkeypatch.setattr(suites, "suite", lambda _: suite)
    drawn = pictures_of(Experiment.of(flats["linear"]), lambda _: None)
    assert len(drawn.train) == len(drawn.test) == 2 * 397
    assert min(drawn.train.counts().values()) == min(drawn.test.counts().values()) == 1


@pytest.mark.parametrize("epochs, active", [(20, 2), (10, 4)])
def test_mosa_is_timed_with_the_parts_it_will_train(epochs, active, tmp_path) -> None:
    plan = toys.plan()
    plan = replace(plan, start=plan.start.changed(epochs=epochs))
    flats = flats_of(plan, tmp_path)
    assert flats["mosa"]["settings"][-1] == f"active={active}" and flats["mosa"]["epochs"] == 20
    assert not any("active" in word for word in flats["bottleneck"]["settings"])
    mosa = arm("mosa")
    mosa = replace(mosa, settings=replace(mosa.settings, settings=("active=3",)))
    flats = flats_of(replace(plan, arms=(mosa,)), tmp_path / "own")
    assert flats["mosa"]["settings"] == ["active=3"]


def test_pilots_that_all_fail_are_no_free_runs(tmp_path) -> None:
    def work(_):
        raise TrainingError("loss", got="nan", want="a number", fix="Lower lr.")

    with refused(TrainingError, what="timing for --budget"):
        measured_costs(toys.plan(), tmp_path, How(executor="here"), lambda _: None, work)


@pytest.mark.parametrize(
    ("change", "images"),
    [({"images": 0.1}, 100), ({"images": 50}, 50), ({"shots": 5}, 20), ({}, 1000)],
)
def test_fewer_images_take_less_time(change, images) -> None:
    plan = replace(toys.plan(), start=toys.plan().start.changed(**change))
    epochs, trials = plan.start.training.epochs, sum(COSTS.values()) * 6  # three tasks, two seeds
    fixed = 18 * SETTING_UP + trials * SCORING * 1000
    assert minutes(plan, COSTS, 1) == pytest.approx((fixed + trials * epochs * images) / 60)


def test_an_estimate_runs_nothing_of_the_plan_and_tells_time_and_memory(tmp_path: Path) -> None:
    plan = toys.plan()

    def work(inputs):
        estimate = toys.work(inputs)
        return estimate | {
            "results": estimate["results"] | {"peak_bytes": {"grown": 7, "accelerator": 9}}
        }

    schedule = How(executor="here")
    estimate = estimated(plan, tmp_path, schedule, lambda _: None, work)
    costs = measured_costs(plan, tmp_path, schedule, lambda _: None, toys.work)
    hours = minutes(plan, costs, 1) / 60
    assert estimate == {"runs": len(list(plan.places())), "hours": hours, "cpu_hours": hours,
                     "peak_bytes": 9}  # fmt: skip
    assert not (tmp_path / "runs").exists() and not (tmp_path / "results.jsonl").exists()


def test_a_pilot_has_a_whole_batch(tmp_path: Path) -> None:
    plan = toys.plan()
    assert {flat["images"] for flat in flats_of(plan, tmp_path / "usual").values()} == {64}
    wide = Protocol("toy", "about", {"batch_size": 96, "select": "last"})
    flats = flats_of(replace(plan, protocol=wide), tmp_path / "wide")
    assert {flat["images"] for flat in flats.values()} == {96}
