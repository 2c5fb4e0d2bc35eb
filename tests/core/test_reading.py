"""Only regular files are opened, at once, and read up to a limit."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from intarsia.core import reading
from intarsia.core.files import read_json
from intarsia.core.sealing import sha256

READERS: dict[str, Callable[[Path], Any]] = {
    "handle": reading.open_handle,
    "bytes": reading.read_bytes,
    "text": reading.read_text,
    "lines": lambda path: list(reading.read_lines(path)),
    "copy": lambda path: reading.copy_file(path, path.with_name("copy")),
    "tensors": reading.read_tensors,
    "copies of tensors": lambda path: reading.copy_tensors(path, ["a"]),
    "json": read_json,
    "digest": sha256,
    "check": reading.check_regular,
}


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("make", [_pipe, _device, _socket])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_regular_file_is_refused_at_once(
    name: str, make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket has few characters
    make(path := Path("file"))
    with pytest.raises(OSError, match="file"):
        READERS[name](path)


@pytest.mark.parametrize("name", sorted(READERS.keys() - {"check"}))
def test_a_folder_and_nothing_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        READERS[name](tmp_path)
    for path in (tmp_path / "nothing", Path("\0"), Path("\ud800")):
        with pytest.raises(OSError, match=r"."):
            READERS[name](path)


def test_a_folder_for_another_library_has_regular_files_only(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").touch()
    (tmp_path / "nowhere").symlink_to("nothing")
    reading.check_regular(tmp_path)
    reading.check_regular(tmp_path / "nothing")
    _pipe(tmp_path / "inside" / "pipe")
    with pytest.raises(OSError, match="a named pipe") as caught:
        reading.check_regular(tmp_path)
    assert caught.value.filename == str(tmp_path / "inside" / "pipe")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert reading.read_bytes(path, 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, where at most 4 are read"):
        reading.read_text(path, limit=4)
    with path.open("r+b") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(OSError, match=r"1,099,511,627,776 bytes"):
        read_json(path)


def test_a_line_that_is_too_long_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LONGEST", 4)
    path = tmp_path / "file"
    path.write_bytes(b"abc\nabcde")
    lines = reading.read_lines(path)
    assert next(lines) == "abc\n"
    with pytest.raises(OSError, match="more than 4 characters"):
        next(lines)


def test_text_is_what_python_reads(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("\ufeffä\r\nb\rc\n".encode())
    assert reading.read_text(path, "utf-8-sig") == path.read_text("utf-8-sig") == "ä\nb\nc\n"
    assert list(reading.read_lines(path, "utf-8-sig", "")) == ["ä\r\n", "b\r", "c\n"]
    path.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        reading.read_text(path)


def test_a_copy_has_bytes_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    path.chmod(0o640)
    reading.copy_file(path, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"bytes"
    assert (tmp_path / "copy").stat().st_mode == path.stat().st_mode


def test_tensors_are_what_was_written(tmp_path: Path) -> None:
    path, tensor = tmp_path / "file", torch.arange(6.0).view(2, 3)
    save_file({"a": tensor, "b": tensor.bfloat16()}, path, metadata={"of": "a test"})
    tensors = reading.read_tensors(path)
    assert tensors.keys() == {"a", "b"} and torch.equal(tensors["a"], tensor)
    with reading.open_tensors(path) as file:
        path.unlink()  # what was opened stays
        assert file.metadata() == {"of": "a test"} and torch.equal(file.get_tensor("a"), tensor)
    save_arrays({"a": tensor.numpy()}, path)
    assert (reading.read_tensors(path, "np")["a"] == tensor.numpy()).all()


def test_damaged_tensors_are_one_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(SafetensorError):
        reading.read_tensors(path)
    save_file({"a": torch.zeros(2).to(torch.float8_e5m2)}, path)
    with pytest.raises(SafetensorError, match="float8_e5m2"):  # numpy has no such type
        reading.read_tensors(path, "np")


@pytest.mark.parametrize("declared", [92, 36, 0xFFFFFFFF, 0])
def test_a_sound_that_was_cut_off_is_not_a_shorter_sound(tmp_path: Path, declared: int) -> None:
    """36 + 8 bytes are there; who writes to a pipe declares the largest size, or none."""
    file = tmp_path / "a.wav"
    file.write_bytes(b"RIFF" + declared.to_bytes(4, "little") + bytes(36))
    with reading.open_regular(file) as sound:
        if declared == 92:
            with pytest.raises(OSError, match="44 of 100 bytes"):
                reading.check_whole_wav(sound)
        else:
            reading.check_whole_wav(sound)
        assert sound.tell() == 0


def test_copies_of_tensors_have_memory_of_their_own(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(3, dtype=torch.int8),
        "half": torch.randn(5, 2).bfloat16(),
        "number": torch.tensor(7.5),
        "none": torch.zeros(0, 4),
        "wide": torch.randn(3, 4, dtype=torch.float64),
    }
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    copies = reading.copy_tensors(path, [*tensors][1:])
    path.write_bytes(bytes(path.stat().st_size))
    assert copies.keys() == {*tensors} - {"odd"}
    for name, copied in copies.items():
        assert copied.dtype == tensors[name].dtype and torch.equal(copied, tensors[name])
