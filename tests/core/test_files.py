"""A file or a folder is written whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import CheckpointError, ConfigError, TrainingError
from intarsia.core.files import (
    alone,
    check_digest,
    digests,
    parse_json,
    read_json,
    unbroken,
    write_json,
    write_text,
    writing,
)


def test_a_file_is_replaced(tmp_path: Path) -> None:
    target = write_text(tmp_path / "new" / "a.txt", "one")
    assert write_text(target, b"two") == target and target.read_text() == "two"
    assert json.loads(write_json(tmp_path / "b.json", {"x": [1]}).read_text()) == {"x": [1]}
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.txt", "b.json", "new"]


def test_a_folder_is_replaced_with_all_that_was_in_it(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with writing(tmp_path / "folder") as scratch:
            scratch.mkdir()
            (scratch / name).write_text(name)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_file_does_not_take_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").write_text("hours")
    with pytest.raises(ConfigError, match="runs: got a folder, want a file.*Name a file"):
        write_text(tmp_path / "runs", "a page")
    with pytest.raises(ConfigError, match="got a folder"), writing(tmp_path / "graph") as scratch:
        scratch.write_text("graph")  # what is written beside it, neither
        scratch.with_name("runs").write_text("weights")
    assert (tmp_path / "runs" / "mine").read_text() == "hours"
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_files_of_others_are_spared(tmp_path: Path) -> None:
    def save() -> None:
        with writing(tmp_path / "folder", spare=True) as scratch:
            scratch.mkdir()
            (scratch / "weights").write_text("new")

    (tmp_path / "folder").mkdir()
    save()
    save()  # an earlier one of its kind is replaced
    (tmp_path / "folder" / "thesis").write_text("years")
    with pytest.raises(ConfigError, match="such as 'thesis', want a new folder"):
        save()
    assert (tmp_path / "folder" / "thesis").read_text() == "years"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_what_is_written_beside_comes_along(tmp_path: Path) -> None:
    with writing(tmp_path / "graph.onnx") as scratch:
        scratch.with_name("graph.onnx.data").write_text("weights")
        scratch.write_text("graph")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["graph.onnx", "graph.onnx.data"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_after_an_error_the_old_one_is_there(tmp_path: Path, error: type[BaseException]) -> None:
    for name in ("file", "folder"):
        target = tmp_path / name
        if name == "folder":
            target.mkdir()
            (target / "kept").write_text("kept")
        else:
            target.write_text("kept")
        with pytest.raises(TrainingError if error is OSError else error), writing(target) as path:
            path.write_text("half of")
            raise error
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "kept").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(TrainingError, match="got .*want a disk with room"):
        write_text(tmp_path / "file" / "a.txt", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


HOLDS = """
import sys
from intarsia.core.files import alone
with alone(sys.argv[1]):
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_worker_until_its_process_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None and other.stdout.readline() == b"mine\n"
        with pytest.raises(ConfigError, match="another process works in.*Wait for that run"):
            alone(folder).__enter__()
        other.kill()
    with alone(folder), alone(folder):  # one that was killed holds nothing; its own may nest
        (folder / "result").touch()
    assert (folder / "result").exists()


def test_a_folder_that_stayed_empty_goes_again(tmp_path: Path) -> None:
    for name in ("run", "runs/of/mine"):  # with the folders above that were made for it
        with pytest.raises(EOFError), alone(tmp_path / name):
            raise EOFError
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="got a file, want a folder"):
        alone(tmp_path / "file").__enter__()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


leaves = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
trees = st.recursive(leaves, lambda t: st.lists(t) | st.dictionaries(st.text(), t), max_leaves=20)


@given(trees)
def test_json_is_read_as_it_was_written(tree: object) -> None:
    assert parse_json(json.dumps(tree)) == tree == parse_json(json.dumps(tree).encode())


@pytest.mark.parametrize("depth", [101, 900, 100_000])
@pytest.mark.parametrize("kind", ["[%s]", '{"a": %s}', '[{"a": %s}]'])
def test_json_that_is_too_deep_is_no_recursion_error(depth: int, kind: str) -> None:
    front, back = kind.split("%s")
    with pytest.raises(ValueError, match="nested"):
        parse_json(front * depth + "1" + back * depth)
    assert parse_json(front * 40 + "1" + back * 40)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for name in ("pipe", "none", "."):
        with pytest.raises(OSError):
            read_json(tmp_path / name)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """What Ctrl-C does in a terminal; a shell lets its background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_waits_until_a_file_is_read() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with unbroken():
            signal.raise_signal(signal.SIGINT)
            done.append("read")
        done.append("not reached")
    assert done == ["read"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_one_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a" / "w.safetensors", b"weights")
    wanted = digests(tmp_path)
    assert list(wanted) == ["a/w.safetensors"]
    check_digest(path, wanted, "a/w.safetensors")
    check_digest(path, {}, "a/w.safetensors")  # a folder from before there were digests
    path.write_bytes(b"weighus")
    with pytest.raises(CheckpointError, match=r"w\.safetensors: got bytes.*want.*Copy the folder"):
        check_digest(path, wanted, "a/w.safetensors")
