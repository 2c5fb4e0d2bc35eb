"""Two names are exchanged in one system call."""

from __future__ import annotations

import ctypes
import errno
import sys
from pathlib import Path

import pytest

from intarsia.core import exchange as module
from intarsia.core.exchange import exchange


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such call")
def test_two_folders_change_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "none")


@pytest.mark.parametrize("number", [None, errno.ENOSYS, errno.EINVAL])
def test_where_there_is_none_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    def refuse(first: bytes, second: bytes) -> int:
        ctypes.set_errno(number or 0)
        return -1

    monkeypatch.setattr(module, "_system_call", lambda: refuse if number else None)
    assert not exchange(tmp_path / "a", tmp_path / "b")
