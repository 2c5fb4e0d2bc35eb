"""Two gloo processes: the draws and the result of one process on the joined batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import CASES, TASKS
from safetensors.torch import load_file

from intarsia.core.errors import ConfigError
from intarsia.train.processes import cores_of, processes, waiting

from ..pages import photos
from ..refusals import refused

SCRIPT = Path(__file__).with_name("ranks.py")
Start = Callable[..., Any]  # the fixture `forked`


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def place(rank: int, port: int) -> dict[str, str]:
    """The environment of one of two processes."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, forked: Start) -> Path:
    folder, port = tmp_path_factory.mktemp("ranks"), free_port()
    places: list[dict[str, str]] = [{}, place(0, port), place(1, port)]
    for running in [forked(SCRIPT, folder, **environment) for environment in places]:
        code, out, err = running.wait()
        assert code == 0, out + err
    return folder


@pytest.mark.parametrize("case", [*CASES, *(f"task-{name}" for name in TASKS)])
def test_two_processes_learn_what_one_does(results: Path, case: str) -> None:
    """A task's parts are weighed by what they count, however unevenly that is shared out."""
    alone, *ranks = (load_file(results / f"{case}-{name}") for name in ("1-0", "2-0", "2-1"))
    assert len(ranks[1].pop("losses")) == 0
    for rank in ranks:
        for name, value in rank.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=2e-6, msg=name)
    # the same in every process, to the bit: they have not drifted apart
    assert all(torch.equal(ranks[0][name], value) for name, value in ranks[1].items())


def test_only_the_first_process_writes(results: Path) -> None:
    for case in CASES:
        lines = [(results / f"out-{case}-{w}" / "metrics.jsonl").read_text() for w in (1, 2)]
        assert lines[0].count("\n") == lines[1].count("\n") == 2 * 6 + 2


def test_an_error_of_the_first_process_reaches_the_others(results: Path) -> None:
    for rank in (0, 1):
        assert "a folder with a run in it" in (results / f"refused-2-{rank}").read_text()


def test_a_stopped_run_goes_on_in_two_processes(results: Path) -> None:
    for rank in (0, 1):
        tensors = load_file(results / f"backward-2-{rank}")
        resumed = load_file(results / f"stop-2-{rank}")
        assert all(torch.equal(tensors[name], value) for name, value in resumed.items())


def test_a_process_closes_its_group_before_python_ends(results: Path) -> None:
    """A thread of gloo that frees a tensor after Python has ended would abort the process."""
    assert [(results / f"left-2-{rank}").read_text() for rank in (0, 1)] == ["closed"] * 2


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda:99", "nonsense"):
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", name)
        with refused(ConfigError, what="ACCELERATE_TORCH_DEVICE"):
            processes()


def test_weights_are_not_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FSDP", "DEEPSPEED"):
        with monkeypatch.context() as patch:
            patch.setenv(f"ACCELERATE_USE_{name}", "true")
            with refused(
                ConfigError,
                what="accelerate launch",
                want="data-parallel processes, each with all weights",
            ):
                processes()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert processes().num_processes == 1


@pytest.mark.slow
def test_a_launch_with_fsdp_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    launch = f"-m accelerate.commands.launch --num_processes 2 --main_process_port {free_port()}"
    fit = "-m intarsia fit photos --model test_vit --untrained --size 32 --epochs 1 --out run"
    for kind in ("--use_fsdp", "--cpu"):
        done = subprocess.run(
            [sys.executable, *f"{launch} {kind} {fit}".split()],
            cwd=tmp_path, env=os.environ | {"ACCELERATE_USE_CPU": "true"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        output = " ".join(done.stderr.replace("│", " ").split())
        if kind == "--cpu":
            assert done.returncode == 0, output
            break
        assert done.returncode == 1
        assert "FSDP (ACCELERATE_USE_FSDP)" in output and "with all weights" in output, output
        assert not (tmp_path / "run").exists()
    assert (tmp_path / "run" / "run.json").is_file()


def test_who_waits_for_nobody_stops_and_says_so(tmp_path: Path, forked: Start) -> None:
    alone = place(0, free_port()) | {"INTARSIA_RENDEZVOUS_SECONDS": "1"}
    code, _, output = forked(SCRIPT, tmp_path, **alone).wait()
    assert code == 1
    assert "ConfigError: processes: got not all of WORLD_SIZE=2" in output
    assert "want all of them within 1 s" in output and "INTARSIA_RENDEZVOUS_SECONDS=5" in output


def test_collectives_are_given_longer_than_the_rendezvous(results: Path) -> None:
    assert [(results / f"timeout-2-{rank}").read_text() for rank in (0, 1)] == ["0:10:00"] * 2


def test_a_process_keeps_the_threads_that_it_had(results: Path) -> None:
    """accelerate would give each of them all cores of the machine."""
    assert [(results / f"threads-2-{rank}").read_text() for rank in (0, 1)] == ["1"] * 2


@pytest.mark.parametrize(
    ("environment", "processes"),
    [
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, 2),
        ({"WORLD_SIZE": "8", "MASTER_ADDR": "far", "LOCAL_WORLD_SIZE": "2"}, 2),
        ({"WORLD_SIZE": "8", "MASTER_ADDR": "far"}, 1),
        ({}, 1),
    ],
)
def test_cores_are_shared_out_on_each_machine(environment: dict[str, str], processes: int) -> None:
    assert cores_of(environment) == max(1, (os.cpu_count() or 1) // processes)


def test_it_is_said_what_is_waited_for() -> None:
    assert waiting({}) == waiting({"WORLD_SIZE": "1"}) == ""
    text = waiting({"WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"})
    assert "at here:1" in text and "WORLD_SIZE=2" in text and "unset it" in text
