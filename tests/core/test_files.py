"""A file or a folder is written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from intarsia.core.errors import TrainingError
from intarsia.core.files import write_json, write_text, writing


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
