"""Image folders in the usual layouts, and in common wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from intarsia.core.errors import DataError
from intarsia.data.folders import read_folder

from ..refusals import refused

Make = Callable[..., Path]


def test_one_folder_per_class(make_folder: Make) -> None:
    folder = make_folder({"cat": 3, "dog": 2})
    (folder / "cat" / "deeper").mkdir()
    (folder / "cat" / "00.png").rename(folder / "cat" / "deeper" / "00.PNG")
    (folder / "cat" / "notes.txt").write_text("not a picture")
    (folder / ".cache").mkdir()
    sets = read_folder(folder)
    assert list(sets) == ["all"]
    assert sets["all"].counts() == {"cat": 3, "dog": 2}
    assert len(sets["all"].digests) == 5


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folders_of_parts(make_folder: Make, val: str) -> None:
    layout = {f"{p}/{c}": n for p, n in (("train", 3), (val, 1), ("test", 2)) for c in "ab"}
    sets = read_folder(make_folder(layout))
    assert {part: len(images) for part, images in sets.items()} == {"train": 6, "val": 2, "test": 4}


def test_parts_in_capitals_are_no_classes(make_folder: Make) -> None:
    sets = read_folder(make_folder({"Train/a": 3, "Train/b": 3, "TEST/a": 1, "TEST/b": 1}))
    assert {part: images.classes for part, images in sets.items()} == dict.fromkeys(
        ("train", "test"), ("a", "b")
    )


def test_vehicles_have_a_class_of_trains(make_folder: Make) -> None:
    assert read_folder(make_folder({"Car": 2, "Train": 2}))["all"].classes == ("Car", "Train")


def test_a_class_called_test_is_a_class_when_there_is_no_train(make_folder: Make) -> None:
    assert read_folder(make_folder({"test": 2, "control": 2}))["all"].classes == ("control", "test")


@pytest.mark.parametrize("kind", ["file", "missing"])
def test_a_path_that_is_not_a_folder(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "here"
    if kind == "file":
        path.write_text("x")
    with pytest.raises(DataError, match="a file" if kind == "file" else "nothing there"):
        read_folder(path)


def test_pictures_without_class_folders(make_folder: Make) -> None:
    with refused(DataError, got="no sub-folder (4 pictures directly in it)"):
        read_folder(make_folder({"loose": 4}) / "loose")


def test_one_class_only(make_folder: Make) -> None:
    with refused(DataError, what="classes of 'photos'", got="only cat"):
        read_folder(make_folder({"cat": 4}))


def test_a_class_with_no_image(make_folder: Make) -> None:
    with refused(DataError, what="classes of 'photos'", got="no picture of dog, fox"):
        read_folder(make_folder({"cat": 4, "dog": 0, "fox": 0}))


def test_class_lists_that_differ(make_folder: Make) -> None:
    layout = {"train/a": 2, "train/b": 2, "test/a": 2, "test/B": 2}
    with pytest.raises(DataError) as caught:
        read_folder(make_folder(layout))
    assert "only in train: ['b']" in str(caught.value)
    assert "only in test: ['B']" in str(caught.value)


def test_two_folders_for_one_part(make_folder: Make) -> None:
    layout = {f"{p}/{c}": 2 for p in ("train", "val", "valid") for c in "ab"}
    with refused(DataError, got="val and valid"):
        read_folder(make_folder(layout))


def test_unreadable_pictures_in_any_part(make_folder: Make) -> None:
    folder = make_folder({f"{p}/{c}": 2 for p in ("train", "test") for c in "ab"})
    (folder / "test" / "a" / "01.png").write_bytes(b"")
    with refused(DataError, what="1 of 4 pictures of 'test' cannot be read"):
        read_folder(folder)
    assert len(read_folder(folder, on_error="skip")["test"].skipped) == 1


def test_what_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.png").touch()
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if path.suffix == ".png":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(DataError, match="a folder that can be read"):
        read_folder(tmp_path)
