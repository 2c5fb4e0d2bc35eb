"""A real plan on a local Ray: the same results as in this process, two runs at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from intarsia.experiments.experiment import Experiment, Pictures
from intarsia.experiments.matrix import planned, run_all
from intarsia.reports.runs import comparison_of, gather, json_choice
from intarsia_lab.bench.report.records import RunResult
from intarsia_lab.bench.run import How, run_plan

from . import killing


@pytest.mark.slow
@pytest.mark.network
def test_a_plan_on_ray_is_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    # begun before the folders are named, as a cluster is: its workers must be told
    ray.init(num_cpus=2, log_to_driver=False, configure_logging=False, include_dashboard=False)
    try:
        monkeypatch.setenv("INTARSIA_HOME", str(tmp_path / "home"))
        plan = replace(killing.plan(epochs=1), seeds=(0,))
        said: list[str] = []
        found = run_plan(plan, tmp_path / "ray", How(jobs=2, executor="ray"), said.append)
        assert (tmp_path / "home" / "sets").is_dir()  # the workers were told of it
        here = run_plan(plan, tmp_path / "here", How(executor="here"), lambda _: None)
    finally:
        ray.shutdown()
    assert [r.status for r in found] == ["done"] * 3, said
    assert [scores(r) for r in found] == [scores(r) for r in here]
    assert len(said) == 3 and "[3/3]" in said[-1]


@pytest.mark.slow
def test_a_comparison_on_ray_is_the_same(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            picture = Image.new("RGB", (32, 32), (60 + 120 * label + i,) * 3)
            picture.save(tmp_path / "photos" / name / f"{i}.png")
    start = Experiment(Pictures(str(tmp_path / "photos"), val=4, test=4)).changed(
        model="test_vit", pretrained=False, size=32, epochs=1, batch_size=4
    )
    ray.init(num_cpus=2, log_to_driver=False, configure_logging=False, include_dashboard=False)
    try:
        for where, on_ray in (("ray", True), ("here", False)):
            runs = planned(start, ["linear", "lora"], [0], {}, tmp_path / where)
            run_all(runs, jobs=2, report=print, threads=1, ray=on_ray)
    finally:
        ray.shutdown()
    one, other = (comparison_of(gather([tmp_path / where])) for where in ("ray", "here"))
    assert json_choice(one)["validation"] == json_choice(other)["validation"]


def scores(found: RunResult) -> object:
    """All but times and memory, to rounding."""
    told = killing.lasting(found)
    return {n: round(v, 4) if isinstance(v, float) else v for n, v in told.items()}
