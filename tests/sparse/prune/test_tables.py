"""A file of sparse tables is smaller, says why, and opens again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import intarsia
from intarsia.core.errors import CheckpointError, TargetError
from intarsia.core.sealing import OPEN, seal_file
from intarsia.schedules import Dsl
from intarsia.schedules.masked import Masking
from intarsia.sparse.prune import tables

from ...refusals import refused


def model(seed: int = 0, films: int = 50) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tables = {"users": nn.Embedding(30, 16), "films": nn.Embedding(films, 16)}
        return nn.ModuleDict({**tables, "mix": nn.Linear(16, 2)})


def test_sparse_tables_are_smaller_and_come_back(tmp_path: Path) -> None:
    net = model()
    Masking(Dsl(0.2, layers=("films",)), net, 0)
    users, films = intarsia.sparse.save_tables(net, tmp_path / "a.safetensors")
    assert not users.rows and users.bytes == users.dense == 30 * 16 * 4
    assert films.rows and films.bytes == 6 * 160 + 4 * 51 + 16  # values, columns, rows, shape
    assert "films.weight: rows, density 0.200 (rows are smaller below 0.625)" in str(films)
    size = (tmp_path / "a.safetensors").stat().st_size
    assert size < sum(p.numel() * 4 for p in net.parameters())
    again = model(seed=1)
    intarsia.sparse.load_tables(again, tmp_path / "a.safetensors")
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    halves = intarsia.sparse.save_tables(net, tmp_path / "b.safetensors", half=True)
    assert halves[1].bytes == 4 * 160 + 4 * 51 + 16 and halves[1].break_even == 0.4375
    intarsia.sparse.load_tables(again, tmp_path / "b.safetensors")
    assert torch.equal(again["films"].weight, net["films"].weight.half().float())
    assert torch.equal(again["mix"].weight, net["mix"].weight)


def test_damaged_files_and_other_models_are_refused(tmp_path: Path) -> None:
    net, path = model(), tmp_path / "a.safetensors"
    Masking(Dsl(0.2), net, 0)
    intarsia.sparse.save_tables(net, path)
    for wrong in (model(films=40), nn.ModuleDict({"users": nn.Embedding(30, 16)})):
        with pytest.raises(CheckpointError):
            intarsia.sparse.load_tables(wrong, path)
    stored = load_file(path)
    save_file({n: t for n, t in stored.items() if n != "films.weight.values"}, path, OPEN)
    seal_file(path)
    with refused(
        CheckpointError,
        got="'films.weight' that does not fit ('films.weight.values')",
        want="a file as intarsia.save wrote it",
    ):
        intarsia.sparse.load_tables(net, path)
    path.write_bytes(path.read_bytes()[:100])
    with refused(
        CheckpointError,
        got="bytes that changed after they were written, or no digest of them",
        want="what was written",
    ):
        intarsia.sparse.load_tables(net, path)
    with refused(TargetError, what="model", got="no embedding table"):
        intarsia.sparse.save_tables(nn.Linear(2, 2), path)


@pytest.mark.parametrize("half", [False, True])
def test_mapped_tables_are_views_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    monkeypatch.setattr(tables, "LARGE", 100)
    monkeypatch.setattr(tables, "BLOCK", 70)  # of numbers: five rows of a table
    net, path = model(), tmp_path / "a.safetensors"
    Masking(Dsl(0.2, layers=("films",)), net, 0)
    intarsia.sparse.save_tables(net, path, half=half)
    usual = model(seed=1)
    intarsia.sparse.load_tables(usual, path)
    with tables.unfilled():
        mapped = model(seed=2)
    assert mapped["films"].weight.is_meta and not mapped["mix"].weight.is_meta
    intarsia.sparse.load_tables(mapped, path, mapped=True)
    for name, value in usual.state_dict().items():
        views = mapped.state_dict()[name]
        assert views.dtype == value.dtype and torch.equal(views, value)
    maps = Path("/proc/self/maps")
    if maps.exists():
        text = maps.read_text()
        assert str(path) in text and "intarsia-table-" in text
    with torch.no_grad():  # what changes is the process's own
        mapped["users"].weight[0] = 7
        mapped["films"].weight[0] = 7
    intarsia.sparse.load_tables(net, path)
    assert torch.equal(net["users"].weight, usual["users"].weight)
    stored = load_file(path)
    wrong = stored["films.weight.row_offsets"].clone()
    wrong[3] = 10**6
    save_file(stored | {"films.weight.row_offsets": wrong}, tmp_path / "b.safetensors", OPEN)
    seal_file(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"'films\.weight' that does not fit"):
        intarsia.sparse.load_tables(mapped, tmp_path / "b.safetensors", mapped=True)
