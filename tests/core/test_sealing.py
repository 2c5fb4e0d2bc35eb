"""What is written is what is read: every byte of a folder and of a single file is sealed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from intarsia.core.errors import CheckpointError
from intarsia.core.files import read_json
from intarsia.core.sealing import (
    OPEN,
    SEAL,
    check_file,
    check_if_sealed,
    check_sealed,
    check_settings,
    digests,
    is_format,
    seal_file,
    seal_folder,
    seal_stock,
    sealed,
)

from ..refusals import refused

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with weights, a text, a card and settings."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "weights").write_bytes(b"weights")
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "README.md").write_text("a card")
    seal_folder(tmp_path, "card.json", {"active": 2, "names": ("a", "b")})
    return tmp_path


def opened(folder: Path, *needs: str) -> dict[str, Any]:
    path = folder / "card.json"
    return check_sealed(path, read_json(path), needs=needs)


def test_a_folder_is_read_as_it_was_written(folder: Path) -> None:
    assert opened(folder, "inner/weights") == {"active": 2, "names": ["a", "b"]}
    (folder / "README.md").write_text("another card")  # which people edit
    (folder / ".gitattributes").touch()
    assert opened(folder) and list(digests(folder, besides=["card.json"])) == [
        "inner/weights",
        "words.txt",
    ]


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """An edit of the settings."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / "card.json").read_text())
        change(content)
        (folder / "card.json").write_text(json.dumps(content))

    return apply


EDITS: dict[str, Callable[[Path], object]] = {
    "a number": edit(lambda c: c.update(active=1)),
    "its type": edit(lambda c: c.update(active=2.0)),
    "a key more": edit(lambda c: c.update(scale="none")),
    "a key less": edit(lambda c: c.pop("names")),
    "no seal": edit(lambda c: c.pop(SEAL)),
    "an empty seal": edit(lambda c: c.update({SEAL: {}})),
    "a seal of another kind": edit(lambda c: c.update({SEAL: ["files"]})),
    "no digest of a file": edit(lambda c: c[SEAL]["files"].pop("words.txt")),
    "a bit of a file": lambda f: (f / "inner" / "weights").write_bytes(b"weighus"),
    "a file less": lambda f: (f / "words.txt").unlink(),
    "a list": lambda f: (f / "card.json").write_text("[]"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_folder_is_refused(name: str, folder: Path) -> None:
    EDITS[name](folder)
    with pytest.raises(CheckpointError) as error:
        opened(folder)
    assert "Copy it again" in error.value.fix


def test_a_file_that_is_read_has_a_digest(folder: Path) -> None:
    (folder / "later").touch()
    with pytest.raises(CheckpointError) as error:
        opened(folder, "later")
    assert error.value.got == "no digest of 'later'"
    elsewhere = sealed({}, {"../other": "0"})
    with refused(CheckpointError, got="a digest of a file elsewhere, '../other'"):
        check_sealed(folder / "card.json", elsewhere)


def test_a_stock_folder_is_checked_if_it_was_sealed(folder: Path) -> None:
    check_if_sealed(folder)
    seal_stock(folder)
    check_if_sealed(folder)
    check_if_sealed(folder, "digests.json", "card.json", "none.json")
    (folder / "words.txt").write_text("swords")
    with pytest.raises(CheckpointError):
        check_if_sealed(folder)


@given(st.dictionaries(st.text(), plain))
def test_any_settings_are_sealed(content: dict[str, Any]) -> None:
    content.pop(SEAL, None)
    read = json.loads(json.dumps(sealed(content)))
    assert check_settings(Path("a"), read) == (json.loads(json.dumps(content)), {})


def test_every_byte_of_a_tensor_file_is_sealed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(5.0), "b": torch.ones(2, 3)}, path, {"of": "a", **OPEN})
    with pytest.raises(CheckpointError):
        check_file(path)  # not sealed yet
    seal_file(path)
    check_file(path)
    assert torch.equal(load_file(path)["a"], torch.arange(5.0))
    content = path.read_bytes()
    for index in range(len(content)):
        path.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
        with pytest.raises(CheckpointError):
            check_file(path)
    for end in (0, 7, 40, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError):
            check_file(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError):
        check_file(path)


@pytest.mark.parametrize(("number", "good"), [(1, True), (True, False), (1.0, False), (2, False)])
def test_a_format_is_a_whole_number(number: object, good: bool) -> None:
    assert is_format(number, 1) == good
