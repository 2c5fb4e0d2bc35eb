"""What every kind of folder and file keeps: its bits, its name at any moment, and its mode."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils import logging

from intarsia.core import files
from intarsia.core.errors import CheckpointError, IntarsiaError
from intarsia.core.files import repaired
from intarsia.core.sealing import FREE

from ..killed import calls_of, killed_at
from .folder_kinds import KINDS, Kind

EARLIER = Path(__file__).with_name("earlier_folders.zip")
MOMENTS = 6  # of a save at which the suite kills; `-m slow` kills twice as often, all kinds


@pytest.fixture(autouse=True)
def no_bars() -> Iterator[None]:
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def written(path: Path) -> list[Path]:
    """The files that a reader trusts."""
    inside = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [file for file in inside if file.suffix not in FREE]


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_bit_anywhere_is_told_when_it_is_opened(name: str, tmp_path: Path) -> None:
    kind, path = KINDS[name], tmp_path / "target"
    kind.write(path, 1)
    assert kind.version(path) == 1
    before = os.umask(0)
    os.umask(before)
    for file in written(path):
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~before
        content = file.read_bytes()
        for position in {len(content) // 2, len(content) - 2}:
            file.write_bytes(
                content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
            )
            with pytest.raises(IntarsiaError) as error:
                kind.version(path)
            assert isinstance(error.value, CheckpointError) or file.suffix != ".safetensors"
        file.write_bytes(content)
    assert kind.version(path) == 1


@pytest.mark.parametrize("name", KINDS)
def test_what_was_written_before_modules_moved_opens(name: str, tmp_path: Path) -> None:
    shutil.unpack_archive(EARLIER, tmp_path)
    assert KINDS[name].version(tmp_path / name.replace(" ", "-") / "target") == 1


def kills(kind: Kind, folder: Path, moments: int) -> list[int]:
    """Kill a replacing save at so many moments, the last calls among them.  -> who is there."""
    path, copy = folder / "new" / "target", folder / "old"
    path.parent.mkdir()
    kind.write(path, 1)
    (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
    kind.write(path, 2)  # what is imported and compiled once is there in every child
    total = calls_of(lambda: kind.write(path, 2))
    last = range(max(0, total - moments // 2), total)
    step = max(1, total // (moments - len(last)))
    versions: list[int] = []
    for number in sorted({*range(0, total, step), *last}):
        shutil.rmtree(path.parent)
        path.parent.mkdir()
        (shutil.copytree if copy.is_dir() else shutil.copy)(copy, path)
        killed_at(number, lambda: kind.write(path, 2))
        versions.append(kind.version(repaired(path)))
    kind.write(path, 2)
    names = {entry.name for entry in path.parent.iterdir()} - {"source"}
    assert kind.version(path) == 2 and names == {"target"}
    return versions


REPLACED = [name for name, kind in KINDS.items() if kind.replaces]


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["mixture", "index", "delta"])
def test_a_killed_save_leaves_the_old_or_the_new_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a kill loses nothing; it takes its time
    versions = kills(KINDS[name], tmp_path, MOMENTS)
    assert versions == sorted(versions) and versions[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("exchanged", [True, False])
@pytest.mark.parametrize("name", REPLACED)
def test_killed_a_dozen_times(
    name: str, exchanged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    if not exchanged:
        monkeypatch.setattr(files, "exchange", lambda first, second: False)
    versions = kills(KINDS[name], tmp_path, 12)
    print(f"{name}: {len(versions)} kills, {versions.count(1)} times the old one, else the new one")
    assert set(versions) <= {1, 2} and versions[0] == 1
