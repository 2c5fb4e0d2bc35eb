"""Ray's slots, with a stand-in for the package: what workers are told, and what a dead one costs.

tests/bench/test_ray.py has a real one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from intarsia.cli import early
from intarsia.core.errors import ConfigError, MissingExtra
from intarsia.runs import matrix, rates
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.runs.on_ray import NICENESS, threads_on
from intarsia.runs.pool import Trial, TrialEnd, run_trials

from ..refusals import refused


class RayError(Exception):
    pass


class OutOfMemoryError(RayError):
    pass


class WorkerCrashedError(RayError):
    pass


DEATHS = {"memory": OutOfMemoryError("memory"), "crash": WorkerCrashedError("gone")}


class Ray(ModuleType):
    """The part of ray that a slot needs: actors are objects, `get` gives the result of a call."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, *cores: int) -> None:
        super().__init__("ray")
        self.cores, self.made, self.killed, self.asked = cores, 0, 0, {}
        self.busy, self.started = False, True

    def is_initialized(self) -> bool:
        return self.started

    def init(self, **_: Any) -> None:
        self.started = True

    def nodes(self) -> list[dict[str, Any]]:
        dead = {"Alive": False, "Resources": {"CPU": 99.0}}
        return [dead, *({"Alive": True, "Resources": {"CPU": float(n)}} for n in self.cores)]

    def remote(self, **options: Any) -> Any:
        self.asked = options

        def actor(kind: Any) -> Any:
            def make(*arguments: Any) -> Any:
                self.made += 1
                slot = kind(*arguments)
                begun = SimpleNamespace(remote=lambda: "begun")
                runs = SimpleNamespace(remote=lambda *a: lambda: slot.run(*a))
                return SimpleNamespace(run=runs, begun=begun)

            return SimpleNamespace(remote=make)

        return actor

    def wait(self, calls: list[Any], *, timeout: float) -> tuple[list[Any], list[Any]]:
        return ([], calls) if self.busy else (calls, [])

    def get(self, call: Any) -> Any:
        right, outcome = call()
        if right and outcome.get("dies"):
            raise DEATHS[outcome["dies"]]
        return right, outcome

    def kill(self, _: Any) -> None:
        self.killed += 1
        raise ValueError("it is dead already")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    library = Ray(2, 8)
    monkeypatch.setitem(sys.modules, "ray", library)
    monkeypatch.setattr("intarsia.runs.on_ray.begin", lambda _: None)
    return library


def work(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {**inputs, "data": os.environ.get("INTARSIA_DATA")}


def run(*inputs: Mapping[str, Any], **settings: Any) -> list[TrialEnd]:
    ends: list[TrialEnd] = []
    trials = [Trial(str(n), values) for n, values in enumerate(inputs)]
    options = {"executor": "ray", "jobs": 1, "threads": 1} | settings
    run_trials(trials, work, done=ends.append, **options)
    return sorted(ends, key=lambda end: end.trial.name)


def test_a_cluster_of_this_machine_alone_gives_its_workers_our_priority(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NICENESS, raising=False)
    ray.started = False
    run({})
    assert ray.started and os.environ[NICENESS] == "0"


def test_workers_are_told_of_folders(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_DATA", "/pictures")
    environments: list[Mapping[str, str]] = []
    init = "intarsia.runs.on_ray.RayWorker.__init__"
    monkeypatch.setattr(init, lambda _, __, environment: environments.append(environment))
    run({})
    assert environments[0]["INTARSIA_DATA"] == "/pictures"
    assert all(name.startswith("INTARSIA_") for name in environments[0])


@pytest.mark.parametrize("death, says", [("memory", "fewer --jobs"), ("crash", "gone")])
def test_a_dead_worker_costs_its_own_trial_only(ray: Ray, death: str, says: str) -> None:
    first, dead, last = run({"n": 0}, {"dies": death}, {"n": 2})
    assert first.result and last.result and dead.result is None
    assert "its worker was lost" in dead.error and says in dead.error
    assert ray.made == ray.killed == 2  # a new one for the last trial


def test_a_comparison_has_a_worker_for_each_run(ray: Ray) -> None:
    assert all(end.result for end in run({}, {}, {}, executor="fresh on ray"))
    assert ray.made == ray.killed == 3
    assert all(end.result for end in run({}, {}, {}))
    assert ray.made == 4  # one worker takes all trials of a search


def test_a_comparison_and_its_search_run_on_ray(
    ray: Ray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    executors: list[str] = []

    def carried(trials: Any, work: Any, *, executor: str, **_: Any) -> None:
        executors.append(executor)
        assert not any(trial.inputs.get("quiet") is False for trial in trials)

    for module in (matrix, rates):
        monkeypatch.setattr(module, "run_told", carried)
    start = Experiment(Pictures("elpv"))
    runs = matrix.planned(start, ["bitfit"], [0], {}, tmp_path)
    matrix.run_all(runs, jobs=1, report=print, ray=True)
    with pytest.raises(KeyError):  # nothing was carried out, so nothing is kept
        rates.RateSearch(ray=True).find(runs, tmp_path, print)
    assert executors == ["fresh on ray", "ray"]


def test_without_ray_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "find_spec", lambda _: None)
    with refused(MissingExtra):
        early.check_jobs(1, True)
    early.check_jobs(2, False)


@pytest.mark.parametrize("busy", [False, True])
def test_a_busy_cluster_is_told_of_and_waited_for(ray: Ray, busy: bool, capsys) -> None:
    ray.busy = busy
    assert all(end.result for end in run({}, {}))
    assert (
        capsys.readouterr().err.count("worker of 1 core has not begun") == busy
    )  # once for a worker


def test_what_has_no_room_is_refused_and_not_waited_for(ray: Ray) -> None:
    with refused(ConfigError, what="--jobs and --threads on Ray", got="2 jobs of 8 cores"):
        run({}, {}, jobs=2, threads=8)
    with refused(ConfigError, what="--jobs and --threads on Ray", got="11 jobs of 1 cores"):
        run(*({} for _ in range(11)), jobs=11, threads=None)
    run({}, {}, jobs=9, threads=None)  # no more workers than trials
    assert ray.asked == {"num_cpus": 4}


@pytest.mark.parametrize(
    "cores, jobs, threads", [([2, 8], 1, 8), ([2, 8], 2, 4), ([2, 8], 5, 2), ([4], 3, 1)]
)
def test_cores_are_shared_out(cores: list[int], jobs: int, threads: int) -> None:
    assert threads_on(cores, jobs, None) == threads
    assert threads_on(cores, jobs, 1) == 1


def test_a_cluster_without_cores_is_refused() -> None:
    with refused(ConfigError, what="--jobs and --threads on Ray", got="1 jobs of 1 cores"):
        threads_on([], 1, None)
