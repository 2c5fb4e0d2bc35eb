"""A file is decoded once, and again when it has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from intarsia.core.errors import DataError
from intarsia.data import cache_dir, fingerprint, images
from intarsia.data.folders import read_folder

from ..refusals import refused

Make = Callable[..., Path]


def test_unchanged_files_are_not_decoded_again(
    make_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder({"a": 3, "b": 3})
    first = fingerprint(read_folder(folder)["all"])
    monkeypatch.setattr(images, "digest", lambda _: pytest.fail("decoded again"))
    assert fingerprint(read_folder(folder)["all"]) == first


def test_a_changed_file_is_decoded_again(
    make_folder: Make, picture: Callable[..., Image.Image]
) -> None:
    folder = make_folder({"a": 2, "b": 2})
    first = read_folder(folder)["all"].digests
    picture(99).save(folder / "a" / "01.png")
    os.utime(folder / "a" / "01.png", ns=(1, 1))
    second = read_folder(folder)["all"].digests
    assert [x == y for x, y in zip(first, second, strict=True)] == [True, False, True, True]


def test_a_file_that_was_damaged_since_is_found(make_folder: Make) -> None:
    folder = make_folder({"a": 2, "b": 2})
    read_folder(folder)
    (folder / "b" / "00.png").write_bytes(b"gone")
    with refused(DataError, what="1 of 4 pictures of 'photos' cannot be read"):
        read_folder(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"a/00.png": 3}'])
def test_a_damaged_cache_is_only_slower(make_folder: Make, content: str) -> None:
    folder = make_folder({"a": 2, "b": 2})
    first = read_folder(folder)["all"].digests
    (file,) = (cache_dir() / "digests").iterdir()
    file.write_text(content)
    assert read_folder(folder)["all"].digests == first


def test_a_cache_that_cannot_be_written_is_only_slower(
    make_folder: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path / "file"))
    assert len(read_folder(make_folder({"a": 2, "b": 2}))["all"].digests) == 4


def test_a_file_of_the_same_size_and_time_is_seen(make_folder: Make) -> None:
    folder = make_folder({"a": 2, "b": 2})
    image, neighbour = folder / "a" / "00.png", folder / "a" / "01.png"
    size = 2 * max(image.stat().st_size, neighbour.stat().st_size)
    image.write_bytes(image.read_bytes().ljust(size, b"\0"))  # what follows a PNG's end is ignored
    first, before = read_folder(folder)["all"].digests, image.stat()
    image.write_bytes(neighbour.read_bytes().ljust(size, b"\0"))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = read_folder(folder)["all"].digests
    assert [x == y for x, y in zip(first, second, strict=True)] == [False, True, True, True]
