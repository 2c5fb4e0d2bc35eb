"""The runner killed twenty times at random moments: the same table, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from intarsia_lab.bench.folder import RESULTS
from intarsia_lab.bench.report import records

from . import killing

KILLS, EPOCHS = 20, 20


@pytest.mark.slow
def test_killed_twenty_times_it_ends_the_same(tmp_path: Path) -> None:
    start = time.monotonic()
    unstopped, out = tmp_path / "whole", tmp_path / "killed"
    assert finished(begun(unstopped))
    setting_up, lines = time.monotonic() - start, progress(unstopped)
    chance = random.Random(0)
    hits = {"before its first step": 0, "in training": 0}
    while sum(hits.values()) < KILLS:
        runner = begun(out)
        if chance.random() < 0.3:  # most likely while it loads, or goes on from a checkpoint
            moved = follow(runner, out, 0, chance.uniform(0, 0.3 * setting_up))
        else:
            moved = follow(runner, out, chance.uniform(1, 1.2 * lines / KILLS), 600)
        if runner.poll() is not None:
            break
        runner.send_signal(signal.SIGKILL)
        runner.wait()
        hits["in training" if moved else "before its first step"] += 1
    took = time.monotonic() - start
    print(f"{hits}; {progress(out)} of {lines} lines were there at the last; {took:.0f} s")
    assert sum(hits.values()) == KILLS and min(hits.values()) > 0, hits
    assert finished(begun(out))

    want, results = (records.read(place / RESULTS) for place in (unstopped, out))
    plan = {r.key: killing.lasting(r) for r in want}
    assert len(plan) == 6 and {r.status for r in want} == {"done"}
    assert {r.key: killing.lasting(r) for r in results} == plan
    for result in want:
        first, second = (killing.remains(place / result.folder) for place in (unstopped, out))
        assert len(first) == 3 and first == second, result.folder


def begun(out: Path) -> subprocess.Popen[bytes]:
    """A runner in a process of its own, with two workers."""
    home = {"INTARSIA_HOME": str(out.parent / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).parent / "killing.py"), str(out), str(EPOCHS)]
    return subprocess.Popen(command, env=os.environ | home, stdout=subprocess.DEVNULL)


def finished(runner: subprocess.Popen[bytes]) -> bool:
    return runner.wait(timeout=900) == 0


def progress(out: Path) -> int:
    """Lines of all curves."""
    return sum(file.read_bytes().count(b"\n") for file in out.glob("runs/*/*/metrics.jsonl"))


def follow(runner: subprocess.Popen[bytes], out: Path, extra: float, seconds: float) -> bool:
    """Wait for so many more lines, at most so long; whether there was one more."""
    deadline, least = time.monotonic() + seconds, progress(out)
    while runner.poll() is None and time.monotonic() < deadline:
        now = progress(out)
        least = min(least, now)  # going on, a run forgets what came after its checkpoint
        if extra and now >= least + extra:
            break
        time.sleep(0.02)
    return progress(out) > least
