"""A file or a folder is written whole or not at all."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core import files
from intarsia.core.errors import ConfigError, TrainingError
from intarsia.core.files import (
    parse_json,
    read_json,
    read_toml,
    repaired,
    reserved,
    unbroken,
    write_bytes,
    write_json,
    write_text,
    writing,
)

from ..killed import killed_at
from ..refusals import refused


def test_a_file_is_replaced(tmp_path: Path) -> None:
    target = write_text(tmp_path / "new" / "a.txt", "one")
    assert write_bytes(target, b"two") == target and target.read_text() == "two"
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
    with refused(ConfigError, got="a folder"):
        write_text(tmp_path / "runs", "a page")
    with refused(ConfigError, got="a folder"), writing(tmp_path / "graph") as scratch:
        scratch.write_text("graph")  # what is written beside it, neither
        scratch.with_name("runs").write_text("weights")
    assert (tmp_path / "runs" / "mine").read_text() == "hours"
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_files_of_others_are_spared(tmp_path: Path) -> None:
    def save() -> None:
        with writing(tmp_path / "folder", refuse_loss=True) as scratch:
            scratch.mkdir()
            (scratch / "weights").write_text("new")

    (tmp_path / "folder").mkdir()
    save()
    save()  # an earlier one of its kind is replaced
    (tmp_path / "folder" / "thesis").write_text("years")
    with refused(ConfigError, got="other files in it, such as 'thesis'"):
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


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_umask_gives_the_mode(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with writing(tmp_path / "folder") as scratch:
            (scratch / "inner").mkdir(parents=True)
            (scratch / "inner" / "weights").touch(0o600)  # as safetensors makes its files
        write_text(tmp_path / "page.html", "page")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    folder, file = 0o777 & ~umask, 0o666 & ~umask
    assert modes == {"folder": folder, "inner": folder, "weights": file, "page.html": file}


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "page").symlink_to(tmp_path / "disk" / "page")
    (tmp_path / "folder").symlink_to(tmp_path / "disk" / "folder")
    for name in ("old", "new"):
        write_text(tmp_path / "page", name)
        with writing(tmp_path / "folder") as scratch:
            scratch.mkdir()
            (scratch / name).touch()
    assert (tmp_path / "disk" / "page").read_text() == "new" and (tmp_path / "page").is_symlink()
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["new"]


def no_exchange(first: Path, second: Path) -> bool:
    """The exchange of a system that has none."""
    return False


def replaces(parent: Path, kind: str) -> None:
    """Write the second version of a file, a folder, or a graph with its weights beside it."""
    with writing(parent / "target") as scratch:
        if kind == "folder":
            scratch.mkdir()
            (scratch / "a").write_text("new")
            (scratch / "b").write_text("new")
            return
        scratch.write_text("new")
        if kind == "graph":
            scratch.with_name("target.data").write_text("new")


@pytest.mark.thorough
@pytest.mark.parametrize("exchanged", [True, False])
@pytest.mark.parametrize("kind", ["file", "folder", "graph"])
def test_killed_at_any_moment_the_old_or_the_new_one_has_the_name(
    tmp_path: Path, kind: str, exchanged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanged:
        monkeypatch.setattr(files, "exchange", no_exchange)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a kill loses nothing; it takes its time
    target = tmp_path / "target"
    ends = set[str]()
    for number in itertools.count():
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        if kind == "folder":
            target.mkdir()
            (target / "a").write_text("old")
            (target / "b").write_text("old")
        else:
            target.write_text("old")
            (tmp_path / "target.data").write_text("old")
        is_killed = killed_at(number, lambda: replaces(tmp_path, kind))
        if not exchanged:
            repaired(target)  # whoever opens it by name
        assert target.exists()
        inside = target.iterdir() if target.is_dir() else [target]
        words = {path.read_text() for path in inside}
        assert words in ({"old"}, {"new"})
        replaces(tmp_path, kind)  # the next writer of that name tidies
        names = {"target"} if kind == "folder" else {"target", "target.data"}
        assert {path.name for path in tmp_path.iterdir()} == names
        ends |= words
        if not is_killed:
            break
    assert ends == {"old", "new"} and number > 15


def test_what_is_ready_is_put_in_place_by_whoever_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(files, "exchange", no_exchange)
    replaces(tmp_path, "folder")
    (tmp_path / "target" / "a").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(files, "_remove", lambda *_: None)
        patch.setattr(os, "replace", lambda old, new: (os.rename(old, new), stop()))
        with pytest.raises(Killed):
            replaces(tmp_path, "folder")
    assert not (tmp_path / "target").exists()
    assert repaired(tmp_path / "target") == tmp_path / "target"
    assert (tmp_path / "target" / "a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
    assert not repaired(tmp_path / "never").exists()


@pytest.mark.parametrize(
    "record", ["", "[]", '{"folder": 1, "target": "out", "names": {"out": ""}}']
)
def test_a_planted_scratch_folder_takes_no_place(tmp_path: Path, record: str) -> None:
    (tmp_path / "victim.txt").write_text("mine")
    (tmp_path / "out").write_text("mine")
    planted = tmp_path / ".out.writing-aaaaaaaa"
    planted.mkdir(0o700)
    for name, text in {".ready": record, "victim.txt": "theirs", "out": "theirs"}.items():
        (planted / name).write_text(text)
    with writing(tmp_path / "out") as scratch:
        assert (tmp_path / "out").read_text() == "mine"
        scratch.write_text("new")
    assert (tmp_path / "victim.txt").read_text() == "mine"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "victim.txt": "mine",
        "out": "new",
    }


def test_a_ready_folder_is_its_user_s_own_and_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what nobody changed is put in place of what a killed writer meant to replace."""

    def left(change: str) -> tuple[Path, Path]:
        folder = tmp_path / change / ".out.writing-12345678"
        folder.mkdir(0o700, parents=True)
        (folder / "out").write_text("new")
        files._declare(folder, folder.parent / "out", ["out"])
        if change == "mode":
            folder.chmod(0o755)
        elif change == "bytes":
            (folder / "out").write_text("theirs")
        elif change == "more":
            (folder / "victim").write_text("theirs")
        elif change == "copy":
            shutil.copytree(folder, tmp_path / "copied")
            (tmp_path / "copied").chmod(0o700)
            shutil.rmtree(folder)
            (tmp_path / "copied").rename(folder)
        return folder, folder.parent / "out"

    for change in ("none", "mode", "bytes", "more", "copy"):
        _, target = left(change)
        assert repaired(target).exists() == (change in ("none", "more")), change
        assert not (target.parent / "victim").exists()
    _, target = left("uid")
    monkeypatch.setattr(os, "getuid", lambda: -1)
    assert not repaired(target).exists()


def test_what_an_older_version_left_is_not_removed_with_the_only_copy(tmp_path: Path) -> None:
    left = tmp_path / ".out.writing-12345678"
    (left / ".before").mkdir(parents=True)
    (left / ".before" / "weights").write_text("hours")
    (left / ".ready").touch()
    with reserved(tmp_path / "out"):
        assert (left / ".before" / "weights").read_text() == "hours"


def test_only_what_is_told_to_be_scratch_is_removed(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as living:
        living.write_text("a")
        (tmp_path / ".b.checkout").mkdir()  # of somebody else
        (tmp_path / ".b.writing-12345678").mkdir()  # of a killed writer
        write_text(tmp_path / "b", "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.checkout", "a", "b"]


def test_one_rule_for_what_is_there(tmp_path: Path) -> None:
    page, folder = tmp_path / "page", tmp_path / "folder"
    page.write_text("<!-- ours --> page")
    folder.mkdir()
    (folder / "card").touch()
    with (
        reserved(page, mark="<!-- ours"),
        reserved(folder, own=("card",)),
        reserved(tmp_path / "x"),
    ):
        pass
    rules: list[tuple[Path, Any]] = [(page, {}), (page, {"mark": "theirs"}), (folder, {})]
    rules.append((folder, {"own": ("other",)}))
    # what each of them would accept: nothing of its kind where it replaces nothing
    accepted = ["a new name", "a new name, or a file that was written like this"]
    accepted.append("a new or empty folder")
    accepted.append("a new or empty folder, or one that was written like this")
    for (target, rule), want in zip(rules, accepted, strict=True):
        parts = {"what": target, "want": want, "fix": "Choose another name."}
        with refused(ConfigError, **parts), reserved(target, **rule):
            pass
    (tmp_path / "empty").mkdir()
    with reserved(tmp_path / "empty"):
        (tmp_path / "empty").rmdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError), reserved(tmp_path / "pipe", mark="words"):
        pass  # which would wait for ever if it were read
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "page", "pipe"]


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


def test_toml_whose_keys_take_their_square_in_time_is_not_parsed(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    for text in ("a" + ".a" * 200_000 + " = 1", "# x\n" * 300_000):
        file.write_text(text)
        with pytest.raises((ValueError, OSError), match="are read"):
            read_toml(file)
    file.write_text("a.b = 1")
    assert read_toml(file) == {"a": {"b": 1}}


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for name in ("pipe", "none", "."):
        with pytest.raises(OSError):
            read_json(tmp_path / name)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Do what Ctrl-C does in a terminal; a shell lets its background jobs ignore it."""
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


@pytest.mark.parametrize("raw", ['["\\ud800"]', '{"a\\udfff": 1}', '["\\ude00\\ud83d"]'])
def test_half_a_character_is_no_json(raw: str) -> None:
    for text in (raw, raw.encode()):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            parse_json(text)
    assert parse_json('["\\ud83d\\ude00", "\\\\ud800"]') == ["\U0001f600", "\\ud800"]
