"""Damage that the generator found to end in another library's error, each done by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from intarsia.core.errors import IntarsiaError

from . import data, of_lab, records, saved

KINDS = {kind.name: kind for kind in (*saved.KINDS, *data.KINDS, *records.KINDS, *of_lab.KINDS)}
Damage = Callable[[Path], object]


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Change the tensors of a file, and the digest that stands beside it."""

    def damage(folder: Path) -> None:
        path = folder / name
        stored, before = load_file(path), hashlib.sha256(path.read_bytes()).hexdigest()
        stored = {key: tensor.clone() for key, tensor in stored.items()}
        change(stored)
        save_file(stored, path, metadata={"format": "pt"})
        after = hashlib.sha256(path.read_bytes()).hexdigest()
        for file in path.parent.glob("*.json"):
            file.write_text(file.read_text().replace(before, after))

    return damage


def settings(name: str, change: Callable[[Any], object]) -> Damage:
    """Change what a JSON file says."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damage


def text(name: str, old: str, new: str) -> Damage:
    def damage(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        assert old.encode() in raw
        (folder / name).write_bytes(raw.replace(old.encode(), new.encode()))

    return damage


def renamed(stored: dict[str, torch.Tensor]) -> None:
    stored["elsewhere"] = stored.pop(next(iter(stored)))


def flat(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(stored: dict[str, torch.Tensor]) -> None:
        stored[name] = stored[name].flatten()

    return change


def whole(stored: dict[str, torch.Tensor]) -> None:
    for name in stored:
        stored[name] = stored[name].int()


TEMPLATE = "{{ raise_exception('no such chat') }}"
MENDED: dict[str, tuple[str, Damage]] = {
    "the header of an array": ("signal.npy", text("a.npy", "'descr'", "'''descr")),
    "figures of a record": ("pages", settings("pruned/sparsify.json", lambda c: c.update(bytes=1))),
    "layers of a record": (
        "pages", settings("pruned/sparsify.json", lambda c: c.update(layers=[1])),
    ),
    "no JSON of spans": ("pages", text("spans.json", "{", "[")),
    "blocks of a walk": ("walk", settings("walk/walk.json", lambda c: c.update(blocks=[{"a": 1}]))),
    "identity of a walk": ("walk", settings("walk/walk.json", lambda c: c.update(identity="x"))),
    "settings of a tokenizer": (
        "language",
        settings("model/tokenizer_config.json", lambda c: c.update(model_max_length="x")),
    ),
    "layers of a walk": ("walk", tensors("walk/block-000.safetensors", renamed)),
    "arrays of an estimator": ("estimator", tensors("bsc/tensors.safetensors", renamed)),
    "experts of unequal shapes": (
        "experts",
        tensors(
            "model/model.safetensors",
            flat("model.layers.0.block_sparse_moe.experts.1.w1.weight"),
        ),
    ),
    "settings of generate": (
        "store", lambda f: (f / "store/generation_config.json").write_text("[1]"),
    ),
    "whole numbers as weights": ("stock", tensors("model/model.safetensors", whole)),
    "a template of chats that fails": (
        "language", lambda f: (f / "model/chat_template.jinja").write_text(TEMPLATE),
    ),
    "half a character": ("texts", text("rows.jsonl", "say dog", "say \\ud83d dog")),
}  # fmt: skip


@pytest.mark.parametrize("name", MENDED)
def test_it_is_refused_in_words(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path / "home"))
    kind, damage = KINDS[MENDED[name][0]], MENDED[name][1]
    (folder := tmp_path / "files").mkdir()
    kind.make(folder)
    damage(folder)
    with pytest.raises(IntarsiaError):
        kind.open(folder)


def test_a_row_without_a_key_is_computed_again(tmp_path: Path) -> None:
    kind = KINDS["results"]
    kind.make(tmp_path)
    settings("store.jsonl", lambda row: row.update(key=["a"]))(tmp_path)
    assert kind.open(tmp_path)[1] == {}


@pytest.mark.parametrize(("kind", "file"), [("recommender", "r/weights.safetensors"),
                                            ("results", "store.jsonl")])  # fmt: skip
def test_no_folder_is_taken_for_a_file(kind: str, file: str, tmp_path: Path) -> None:
    KINDS[kind].make(tmp_path)
    (tmp_path / file).unlink()
    (tmp_path / file).mkdir()
    with pytest.raises(IntarsiaError):
        KINDS[kind].open(tmp_path)
