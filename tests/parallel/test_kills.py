"""Trainings on four processes, killed at any moment: the short form of benchmarks/kills.py."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks children to kill")
def test_a_killed_run_on_four_processes_ends_with_the_same_bits(
    tmp_path: Path, forked: Callable[..., Any]
) -> None:
    """Copies of busy experts, which go by the batches before. Whoever is left ends with an error
    that says so, or the script fails; so it does for other bits."""
    code, out, err = forked(SCRIPT, "--kills", 2, "--out", tmp_path).wait(600)
    assert code == 0, out + err
    rows = [json.loads(line) for line in (tmp_path / "kills.jsonl").read_text().splitlines()]
    assert all(row["same"] for row in rows) and rows[0]["strategy"] == "Fssdp"
    assert rows[0]["kills"][1]["call"] == "fsync"  # while a checkpoint is written
    assert sum(-9 in kill["ends"] for row in rows for kill in row["kills"]) >= 2
