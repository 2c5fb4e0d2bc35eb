"""Experts on four gloo processes, started once for all cases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import intarsia

SCRIPT = Path(__file__).with_name("four_processes.py")
WORLD, SECONDS = 4, 240


def test_four_processes_are_one_and_send_what_the_plan_says(tmp_path: Path) -> None:
    source = Path(intarsia.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(WORLD)
    ]
    try:
        said = [process.communicate(timeout=SECONDS)[1] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0] * WORLD, "\n".join(said)[-4000:]
