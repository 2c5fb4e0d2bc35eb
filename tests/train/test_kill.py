"""SIGKILL at any moment, then resume: the same bits as a run that was left alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

linux = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks children to kill")


@pytest.mark.thorough
@linux
def test_killed_and_resumed_runs_end_with_the_same_bits(
    tmp_path: Path, forked: Callable[..., Any]
) -> None:
    script = Path(__file__).with_name("killing.py")
    code, out, err = forked(script, tmp_path).wait(600)
    assert code == 0, err
    lines = [line.split(",") for line in out.splitlines()]
    rows = {name: tuple(rest) for name, *rest in lines}
    assert rows.pop("whole") == ("0", "", "True", "0"), err
    kinds = [name.split()[0] for name in rows]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "step": 4, "sync": 5, "cleanup": 1, "metrics": 2, "time": 3,
    }  # fmt: skip
    began = {name: int(row[3] or -1) for name, row in rows.items()}
    assert {n: r[:3] for n, r in rows.items()} == {n: ("-9", "0", "True") for n in rows}, err
    # it did go on from the newest checkpoint, every second step, and did not start again
    steps = {name: step for name, step in began.items() if name.startswith("step")}
    assert steps == {"step 1": 0, "step 4": 4, "step 5": 4, "step 14": 14}
