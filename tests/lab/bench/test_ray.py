"""A real plan on a local Ray: the same results as in this process, two runs at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

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


def scores(found: RunResult) -> object:
    """All but times and memory, to rounding."""
    told = killing.lasting(found)
    return {n: round(v, 4) if isinstance(v, float) else v for n, v in told.items()}
