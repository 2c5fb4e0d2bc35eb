"""A real plan on a local Ray: the same results as in this process, two runs at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from intarsia.cli import app
from intarsia.reports.runs import comparison_of, gather, json_choice
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.runs.matrix import planned, run_all
from intarsia.runs.on_ray import NICENESS, connected
from intarsia_lab.bench.report.records import RunResult
from intarsia_lab.bench.run import How, run_plan

from ...pages import photos
from . import killing

PATIENT = {  # what Ray gives up after a minute or less, which a busy machine needs longer for
    "RAY_worker_register_timeout_seconds": "1800",
    "RAY_health_check_timeout_ms": "1800000",
    "RAY_gcs_server_request_timeout_seconds": "1800",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "1800",
    NICENESS: "0",
}
SLOWER = 60  # times, at which Ray's clock goes while a node starts: its 30 seconds are half an hour


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


@pytest.mark.slow
def test_a_comparison_on_two_nodes_outlives_a_killed_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run of the lost worker is named, and the same command again makes up for it alone."""
    ray = pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    line = "compare photos --methods linear,lora --seeds 0 --lr 2e-3 --model test_vit --untrained"
    words = f"{line} --size 32 --epochs 2 --jobs 2 --threads 1 --json".split()
    with two_nodes(monkeypatch):
        killer = threading.Thread(target=kill_a_worker, daemon=True)
        killer.start()
        first = CliRunner().invoke(app, [*words, "--ray", "--out", "ray"])
        assert first.exit_code != 0 and "its worker was lost" in first.output, first.output
        killer.join()
        done = {path.parent for path in (tmp_path / "ray").glob("*/run.json")}
        second = CliRunner().invoke(app, [*words, "--ray", "--out", "ray"])
        assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    assert len(done) == 1 and second.exit_code == 0, second.output
    alone = CliRunner().invoke(app, [*words, "--out", "here"])
    assert alone.exit_code == 0, alone.output
    ours, local = (comparison_of(gather([tmp_path / name])) for name in ("ray", "here"))
    assert json_choice(ours)["validation"] == json_choice(local)["validation"]


@contextmanager
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start a cluster of two nodes on this machine, to which Ray is connected inside the block."""
    ray, node = pytest.importorskip("ray"), pytest.importorskip("ray._private.node")
    cluster: Any = pytest.importorskip("ray.cluster_utils").Cluster()
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    try:
        with monkeypatch.context() as slowed:
            clock = vars(time) | {"monotonic": lambda: time.monotonic() / SLOWER}
            slowed.setattr(node, "time", SimpleNamespace(**clock))
            for _ in range(2):
                cluster.add_node(wait=False, num_cpus=1, include_dashboard=False)
        cluster.wait_for_nodes(timeout=1800)
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def kill_a_worker() -> None:
    """Kill the first worker that runs a trial, as a machine does that runs out of memory."""
    while True:
        for process in psutil.process_iter(["cmdline"]):
            if any("ray::RayWorker.run" in word for word in process.info["cmdline"] or ()):
                process.kill()
                return
        time.sleep(0.02)


def scores(result: RunResult) -> object:
    """Return everything but times and memory, to rounding."""
    values = killing.lasting(result)
    return {n: round(v, 4) if isinstance(v, float) else v for n, v in values.items()}
