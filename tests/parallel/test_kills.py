"""Trainings on four processes, killed at any moment: the short form of benchmarks/kills.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.thorough
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


def torchrun(*words: object) -> subprocess.Popen[bytes]:
    """`intarsia fit` in two processes, as torchrun starts them."""
    start = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    line = [*start, "-m", "intarsia", "fit", *map(str, words)]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def learned(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.rglob("*.safetensors"))}


@pytest.mark.slow
@pytest.mark.parametrize("everyone", [False, True])
def test_a_run_of_torchrun_of_which_one_or_all_are_killed_goes_on(
    tmp_path: Path, everyone: bool
) -> None:
    draw = np.random.default_rng(0)
    for number in range(24):
        place = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(place)
    words = ("--model", "test_vit", "--untrained", "--size", 32, "--batch-size", 4, "--epochs", 8)
    words = (
        tmp_path / "data",
        *words,
        "--method",
        "upcycle",
        "--expert-parallel",
        2,
        "--plan",
        "ep",
    )
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert torchrun(*words, "--out", whole).wait(600) == 0
    running = torchrun(*words, "--out", out)
    log, began = out / "metrics.jsonl", time.monotonic()
    while not (log.is_file() and log.read_bytes().count(b"\n") > 1):
        assert running.poll() is None and time.monotonic() - began < 300
        time.sleep(0.02)
    workers = psutil.Process(running.pid).children()
    for worker in workers if everyone else workers[1:]:
        worker.kill()
    assert running.wait(300) != 0
    assert torchrun(*words, "--out", out, "--resume").wait(600) == 0
    assert learned(out) == learned(whole) != {}
