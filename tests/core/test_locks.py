"""One process at a time works on a file or a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from intarsia.core import locks
from intarsia.core.errors import ConfigError, TrainingError
from intarsia.core.files import write_text
from intarsia.core.locks import alone, held

from ..refusals import refused

HOLDS = """
import sys
from intarsia.core.locks import {lock}
with {lock}(sys.argv[1]):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("lock", ["alone", "held"])
def test_a_name_has_one_worker_until_its_process_ends(tmp_path: Path, lock: str) -> None:
    folder = tmp_path / "run"
    program = [sys.executable, "-c", HOLDS.format(lock=lock), folder]
    holder = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"mine\n"
        for take in (alone, held):
            with refused(ConfigError, got="a name that another process works on"):
                take(folder).__enter__()
        holder.kill()
    with alone(folder), alone(folder), held(folder):  # what was killed holds nothing; it may nest
        assert (tmp_path / ".run.lock").exists()
        (folder / "result").touch()
    assert (folder / "result").exists() and [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_thread_waits_for_another(tmp_path: Path) -> None:
    with held(tmp_path / "file"):
        thread = Thread(target=write_text, args=(tmp_path / "file", "text"))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
    thread.join()
    assert (tmp_path / "file").read_text() == "text"


def test_folders_that_stayed_empty_go_again(tmp_path: Path) -> None:
    for name in ("run", "runs/of/mine"):  # with the folders above that were made for it
        for lock in (alone, held):
            with pytest.raises(EOFError), lock(tmp_path / name):
                raise EOFError
    (tmp_path / "file").touch()
    with refused(ConfigError, got="a file"):
        alone(tmp_path / "file").__enter__()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="want a disk with room"):
        held(tmp_path / "file" / "page").__enter__()
    monkeypatch.setattr(locks.os, "access", lambda path, mode: False)  # a mounted folder
    (tmp_path / "run").mkdir()
    with held(tmp_path / "run"):
        assert os.listdir(tmp_path / "run") == [".lock"]
    assert os.listdir(tmp_path / "run") == []
