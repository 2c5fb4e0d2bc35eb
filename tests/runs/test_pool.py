"""Trials in processes: all of them, in parallel, and none stops the others."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from intarsia.core.errors import ConfigError
from intarsia.runs.pool import TimeLeft, Trial, TrialEnd, run_told, run_trials

from ..refusals import refused
from .pool_work import work


def run(kinds: list[str], jobs: int, executor: str = "processes") -> dict[str, TrialEnd]:
    ends: dict[str, TrialEnd] = {}
    trials = [Trial(f"{kind}-{n}", {"do": kind, "n": n}) for n, kind in enumerate(kinds)]
    run_trials(
        trials, work, jobs=jobs, done=lambda o: ends.update({o.trial.name: o}), threads=1,
        executor=executor,
    )  # fmt: skip
    return ends


def test_a_fresh_process_serves_one_trial() -> None:
    ends = run(["work", "raise", "work", "die"], jobs=1, executor="fresh")
    first, second = (ends[f"work-{n}"].result for n in (0, 2))
    assert first and second and len({first["process"], second["process"], os.getpid()}) == 3
    assert "Count." in ends["raise-1"].error and "exit code -9" in ends["die-3"].error


@pytest.mark.thorough
def test_every_trial_ends_once_and_a_process_serves_many() -> None:
    ends = run(["work"] * 5, jobs=2)
    results = [ends[f"work-{n}"].result for n in range(5)]
    assert [r["square"] for r in results if r] == [0, 1, 4, 9, 16]
    assert len({r["process"] for r in results if r}) <= 2
    assert all(r and r["process"] != os.getpid() for r in results)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "executor", ["processes", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.network])]
)
def test_what_goes_wrong_is_recorded_and_stops_nothing(executor: str) -> None:
    if executor == "ray":
        pytest.importorskip("ray")
    ends = run(["work", "raise", "die", "fault", "work"], jobs=1, executor=executor)
    assert ends["raise-1"].error == "labels: got 1, want 2. Count."
    assert ("memory ran out" if executor == "processes" else "was lost") in ends["die-2"].error
    assert ends["fault-3"].error.startswith("ZeroDivisionError: a fault (pool_work.py:")
    done = ends["work-4"].result
    assert done and done["square"] == 16
    assert all(ends[name].result is None for name in ("raise-1", "die-2", "fault-3"))


def test_impossible_numbers_are_refused() -> None:
    with refused(ConfigError, what="--jobs", got=0):
        run(["work"], jobs=0)
    with refused(ConfigError, what="executor", got="'pigeons'"):
        run_trials([], work, jobs=1, done=lambda _: None, executor="pigeons")


@pytest.mark.parametrize("executor, drawn", [("here", True), ("fresh", False)])
def test_a_worker_draws_no_bar_over_the_others(
    executor: str, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, a terminal
    result = run(["bar"], jobs=1, executor=executor)["bar-0"].result
    assert result and result["drawn"] == drawn


def ended(trial: Trial, seconds: float) -> TrialEnd:
    return TrialEnd(trial, {}, "", seconds)


def test_time_left_is_by_kind() -> None:
    trials = [
        Trial(f"{kind} {n}", {}, kind) for n in range(3) for kind in ("linear", "full", "ssf")
    ]
    pace = TimeLeft(trials, jobs=2)
    assert pace.left() is None
    pace.add(ended(trials[0], 10))  # of the others nothing is known: 8 x 10 s on two
    assert pace.left() == pytest.approx(8 * 10 / 2)
    pace.add(ended(trials[1], 100))  # linear 2 x 10, full 2 x 100, ssf 3 x the mean of 55
    assert pace.left() == pytest.approx((2 * 10 + 2 * 100 + 3 * 55) / 2)
    pace.add(ended(trials[3], 20))  # linear is 15 by now, the mean 130 / 3
    assert pace.left() == pytest.approx((1 * 15 + 2 * 100 + 3 * 130 / 3) / 2)
    for trial in (trials[2], *trials[4:8]):
        pace.add(ended(trial, 30))
    assert pace.left() == pytest.approx(30)  # one ssf is left, and the other slot has no work
    pace.add(ended(trials[8], 30))
    assert pace.left() == 0


def test_every_end_is_told_with_the_time_that_is_left() -> None:
    messages: list[str] = []
    trials = [Trial("a", {"do": "work", "n": 1}), Trial("b", {"do": "raise", "n": 1})]
    run_told(
        trials, work, jobs=1, done=lambda _: None, describe=lambda r: f"{r['square']} of it",
        report=messages.append, executor="here",
    )  # fmt: skip
    assert messages[0].startswith("[1/2] a: 1 of it, 0 s; 0 min gone, about 0 left")
    assert messages[1].startswith("[2/2] b: FAILED, labels: got 1, want 2. Count.; 0 min gone")


@pytest.mark.thorough
def test_workers_end_with_a_runner_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "runner.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, pathlib, sys, time
            from intarsia.runs.pool import Trial, run_trials

            def work(inputs):
                pathlib.Path(inputs["file"]).write_text(str(os.getpid()))
                time.sleep(60)

            if __name__ == "__main__":
                run_trials([Trial("a", {"file": sys.argv[1]})], work, jobs=1, threads=1,
                           done=lambda _: None)
            """
        )
    )
    file = tmp_path / "pid"
    runner = subprocess.Popen([sys.executable, str(script), str(file)])
    while not (file.exists() and file.read_text()):
        time.sleep(0.05)
    worker = int(file.read_text())
    runner.kill()
    runner.wait()
    deadline = time.monotonic() + 20
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(worker)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_a_piece_that_fails_is_told_and_its_trials_are_tried_one_by_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trials = [Trial(f"work-{n}", {"do": "work", "n": n}, stack="same") for n in range(2)]
    ends: list[TrialEnd] = []
    # this work knows no stack
    run_trials(trials, work, jobs=1, done=ends.append, executor="here", threads=1)
    assert [end.result and end.result["square"] for end in ends] == [0, 1]
    (line,) = caplog.messages
    assert line.startswith("2 trials in one piece, work-0 to work-1, failed (KeyError: 'do'")
