"""Malformed files of every kind are refused in words, and the counting sees what is not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from PIL import Image
from tests.fuzz import data, saved
from tests.fuzz.bombs import BOMBS, bomb_of
from tests.fuzz.gguf_damage import gguf as gguf_damage
from tests.fuzz.gguf_damage import places
from tests.fuzz.kinds import Kind, digest
from tests.fuzz.mutations import CANARY
from tests.fuzz.running import BAD, Fuzz, counts

from intarsia.core.errors import CheckpointError, DataError
from intarsia.core.files import read_json

ROOT = Path(__file__).parents[2]


@pytest.mark.thorough
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked and limited")
def test_no_malformed_file_is_raw_hangs_or_runs() -> None:
    # a process of its own: it forks, and this one has threads
    words = [sys.executable, "-m", "tests.fuzz", "--count", "300", "--irregular"]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True,
        check=False, timeout=1_000,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2_000:]


def _make(folder: Path) -> None:
    (folder / "a.json").write_text('{"a": [1, 2, {"b": null}]}')


def _clean(folder: Path) -> None:
    raise DataError("file", got="nothing", want="a file", fix="Write one.")


def _raw(folder: Path) -> None:
    raise TypeError("raw")


def _hang(folder: Path) -> None:
    time.sleep(1_000)


def _busy(folder: Path) -> None:
    while True:
        pass


def _died(folder: Path) -> None:
    os._exit(3)


def _killed(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _ran(folder: Path) -> None:
    (folder / CANARY).touch()


def _greedy(folder: Path) -> None:
    bytearray(2**33)


ENDS = {
    "other": lambda folder: os.urandom(8), "same": lambda folder: "same", "clean": _clean,
    "raw": _raw, "hang": _hang, "died": _died, "ran": _ran,
}  # fmt: skip
MORE = {"busy": ("hang", _busy), "killed": ("died", _killed), "greedy": ("raw", _greedy)}


@pytest.mark.thorough
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked and limited")
def test_each_end_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.running.SECONDS", 1)
    monkeypatch.setattr("tests.fuzz.running.CPU_SECONDS", 1)
    opens = ENDS | {name: open for name, (_, open) in MORE.items()}
    fuzz = Fuzz([], tmp_path)  # which would open a good one of each, and end with it
    fuzz.kinds = tuple(Kind(name, _make, open) for name, open in opens.items())
    fuzz.results = dict.fromkeys(opens, digest("same"))
    for name in opens:
        (tmp_path / "good" / name).mkdir(parents=True)
        _make(tmp_path / "good" / name)
    ends = list(fuzz.run(fuzz.cases(len(opens) + 2)))
    outcomes = {name: name for name in ENDS} | {
        name: outcome for name, (outcome, _) in MORE.items()
    }
    assert {end.case.kind.name: end.outcome for end in ends} == outcomes
    assert len(ends) == len(opens) + 2 and counts(ends)["all"]["other"] == 2
    assert {end.outcome for end in ends if end.outcome in BAD} == set(BAD)


def test_a_case_is_the_same_again(tmp_path: Path) -> None:
    def opened(folder: Path) -> Any:
        try:
            return read_json(folder / "a.json")
        except (OSError, ValueError) as error:
            raise CheckpointError("file", got=error, want="JSON", fix="Mend it.") from error

    fuzz = Fuzz([Kind("json", _make, opened)], tmp_path)
    ends = [(e.damage, e.outcome, e.error) for _ in range(2) for e in fuzz.run(fuzz.cases(30))]
    assert ends[:30] == ends[30:] and len(set(ends)) > 10
    assert {outcome for _, outcome, _ in ends} <= {"clean", "same", "other"}
    assert [e.damage for e in fuzz.run(fuzz.cases(30, seed=1))] != [e[0] for e in ends[:30]]


@pytest.mark.parametrize("file", ["a.png", "a.gif", "a.bmp", "a.npy"])
def test_a_bomb_says_that_it_is_large_and_is_not(tmp_path: Path, file: str) -> None:
    data._pictures(tmp_path)
    data._array(tmp_path / "a.npy")
    raw = (tmp_path / file).read_bytes()
    bomb = bomb_of(raw)
    assert bomb in BOMBS.values() and bomb is not None
    (tmp_path / file).write_bytes(bomb(raw, random.Random(0)))
    assert abs((tmp_path / file).stat().st_size - len(raw)) < 100
    if file.endswith("npy"):
        with pytest.raises(ValueError, match="too big|reshape|allocate"):
            np.load(tmp_path / file)
    else:
        with pytest.raises((Image.DecompressionBombError, Image.DecompressionBombWarning)):
            Image.open(tmp_path / file)


def test_the_damage_to_a_gguf_file_knows_its_whole_header(tmp_path: Path) -> None:
    (kind,) = (kind for kind in saved.KINDS if kind.name == "gguf")
    kind.make(tmp_path)
    (file,) = tmp_path.iterdir()
    raw, reader = file.read_bytes(), gguf.GGUFReader(file)
    header = list(places(raw))
    tensors = [int(t.data_offset) - reader.data_offset for t in reader.tensors]
    places_of = [place for kind, place, _ in header if kind == "offset"]
    offsets = [int.from_bytes(raw[place : place + 8], "little") for place in places_of]
    assert offsets == tensors and len(tensors) > 2
    _, last, width = header[-1]
    assert 0 <= reader.data_offset - (last + width) < 32  # where the numbers begin
    damaged = {gguf_damage(raw, random.Random(seed)) for seed in range(20)}
    assert len(damaged - {raw}) > 10
