"""SparseGPT is as good as llm-compressor on one block, which runs in its own environment."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "sparsegpt_peer.py"


@pytest.mark.network
@pytest.mark.slow
def test_sparsegpt_is_within_two_percent_of_its_peer(tmp_path: Path) -> None:
    words = ["--environment", tmp_path / "peer", "--rows", "8", "--length", "64", "--reps", "1"]
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, check=True
    )
    ratios = re.findall(r"^\| \S+_proj \|[^|]*\|[^|]*\| ([\d.]+) \|", done.stdout, re.M)
    assert len(ratios) == 7 and max(map(float, ratios)) <= 1.02
