"""A real plan on a local Ray: the same results as in this process, two runs at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from intarsia.reports.runs import comparison_of, gather, json_choice
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.runs.matrix import planned, run_all
from intarsia.runs.on_ray import connected
from intarsia_lab.bench.report.records import RunResult
from intarsia_lab.bench.run import How, run_plan

from . import killing


@pytest.mark.slow
@pytest.mark.network
def test_a_plan_on_ray_is_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    # begun before the folders are named, as a cluster is: its workers must be told
    ray = connected()
    try:
        monkeypatch.setenv("INTARSIA_HOME", str(tmp_path / "home"))
        plan = replace(killing.plan(epochs=1), seeds=(0,))
        messages: list[str] = []
        results = run_plan(plan, tmp_path / "ray", How(jobs=2, executor="ray"), messages.append)
        assert (tmp_path / "home" / "sets").is_dir()  # the workers were told of it
        local = run_plan(plan, tmp_path / "here", How(executor="here"), lambda _: None)
    finally:
        ray.shutdown()
    assert [r.status for r in results] == ["done"] * 3, messages
    assert [scores(r) for r in results] == [scores(r) for r in local]
    assert len(messages) == 3 and "[3/3]" in messages[-1]


@pytest.mark.slow
def test_a_comparison_on_ray_is_the_same(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            picture = Image.new("RGB", (32, 32), (60 + 120 * label + i,) * 3)
            picture.save(tmp_path / "photos" / name / f"{i}.png")
    start = Experiment(Pictures(str(tmp_path / "photos"), val=4, test=4)).changed(
        model="test_vit", pretrained=False, size=32, epochs=1, batch_size=4
    )
    ray = connected()
    try:
        for place, on_ray in (("ray", True), ("here", False)):
            runs = planned(start, ["linear", "lora"], [0], {}, tmp_path / place)
            run_all(runs, jobs=2, report=print, threads=1, ray=on_ray)
    finally:
        ray.shutdown()
    first, second = (comparison_of(gather([tmp_path / place])) for place in ("ray", "here"))
    assert json_choice(first)["validation"] == json_choice(second)["validation"]


def scores(result: RunResult) -> object:
    """Return everything but times and memory, to rounding."""
    values = killing.lasting(result)
    return {n: round(v, 4) if isinstance(v, float) else v for n, v in values.items()}
