"""Checkpoints that each process writes its part of: any number reads them; damage is named."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from intarsia.core.errors import CheckpointError, IntarsiaError
from intarsia.parallel import ExpertParallel, Processes, Strategy, Tutel
from intarsia.parallel.attached import Attached
from intarsia.parallel.layout import STACKED
from intarsia.processes.pieces import Piece, Pieces, Stored, write_file
from intarsia.processes.together import _write_part as written_and_synced
from intarsia.train import checkpoint

from ..refusals import refused

SHAPES: dict[str, tuple[int, ...]] = {"up": (6, 4, 3), "down": (6, 3, 4), "up_bias": (6, 4)}


def values() -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(0)
    tensors = {n: torch.randn(s, generator=draws).to(torch.bfloat16) for n, s in SHAPES.items()}
    return tensors | {"head": torch.randn(5, generator=draws), "steps": torch.tensor(7)}


def written(folder: Path) -> list[dict[str, Any]]:
    """Three processes: two with whole experts, one with none; a fourth has the rest."""
    folder.mkdir()
    full = values()
    lots = (torch.tensor([4, 0, 1]), torch.tensor([2, 5, 3]), torch.tensor([], dtype=torch.int64))
    parts: list[dict[str, Any]] = []
    for rank, index in enumerate(lots):
        pieces: dict[str, Tensor | Piece] = {
            name: Piece(full[name][index], STACKED[name], index, 0, 1, 6) for name in SHAPES
        }
        if rank == 2:
            pieces |= {"head": full["head"], "steps": full["steps"]}
        parts.append(write_file(folder / f"{rank}.safetensors", pieces))
    return json.loads(json.dumps(parts))


def test_any_rows_come_back_with_their_bits(tmp_path: Path) -> None:
    full, pieces = values(), Pieces(tmp_path / "s", written(tmp_path / "s"))
    for name in SHAPES:
        assert torch.equal(pieces.all(name), full[name])
        for index in (torch.tensor([5, 0]), torch.tensor([3]), torch.tensor([], dtype=torch.int64)):
            assert torch.equal(pieces.rows(name, index), full[name][index])
    assert torch.equal(pieces.tensor("head"), full["head"])
    assert torch.equal(pieces.tensor("steps"), full["steps"])


@pytest.mark.parametrize(("strategy", "experts"), [(ExpertParallel(), 4), (Tutel(), 2)])
def test_four_then_two_then_three_processes_keep_every_bit(
    group: Processes, strategy: Strategy, experts: int, tmp_path: Path
) -> None:
    """Slices of hidden units and a process without experts among them."""
    from fitting_jobs import resharded  # pyright: ignore[reportMissingImports]

    group.run(resharded, strategy, experts, tmp_path)
    states: list[dict[str, Tensor]] = []
    for count in (4, 2, 3):
        path = checkpoint.latest(tmp_path / str(count))
        assert path is not None and len(list(path.glob("part-*"))) == count
        state = everything(checkpoint.load(path))
        states.append(state)
    assert states[0].keys() == states[1].keys() == states[2].keys() and len(states[0]) > 20
    assert all(torch.equal(t, loaded[n]) for loaded in states[1:] for n, t in states[0].items())


def test_a_file_that_another_process_renames_meanwhile_is_no_error(tmp_path: Path) -> None:
    """safetensors writes under another name first; a link to nothing is a name that is gone."""

    def part(scratch: Path) -> str:
        (scratch / "own").write_text("whole")
        (scratch / ".tmp-of-another").symlink_to(scratch / "gone")
        return "said"

    assert written_and_synced(part, tmp_path) == "said"


def everything(tree: Any, path: str = "") -> dict[str, Tensor]:
    """Read all tensors of a checkpoint, whole, by their place."""
    if isinstance(tree, Stored | Tensor):
        return {path: tree.all() if isinstance(tree, Stored) else tree}
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return {k: t for n, v in items for k, t in everything(v, f"{path}/{n}").items()}


def test_damage_is_named(tmp_path: Path) -> None:
    parts, full = written(tmp_path / "s"), values()
    row = full["up"][5].contiguous().view(torch.uint8).numpy().tobytes()
    file = tmp_path / "s" / "1.safetensors"
    raw = file.read_bytes()
    start = raw.index(row)
    file.write_bytes(raw[:start] + bytes([raw[start] ^ 1]) + raw[start + 1 :])
    pieces = Pieces(tmp_path / "s", parts)
    assert torch.equal(pieces.rows("up", torch.tensor([2])), full["up"][[2]])
    with refused(CheckpointError, got="bytes that changed after they were written"):
        pieces.rows("up", torch.tensor([2, 5]))
    file.write_bytes(raw[:-3])
    with refused(CheckpointError, got="365 bytes", want="368"):
        Pieces(tmp_path / "s", parts)
    file.unlink()
    with refused(CheckpointError, got="no such file", want="3 files, one of each process"):
        Pieces(tmp_path / "s", parts)
    with refused(CheckpointError, got="3 parts of experts of 'up'"):
        Pieces(tmp_path / "s", parts[:1])
    for name in ("../x", ""):
        with refused(CheckpointError, got="no such file"):
            Pieces(tmp_path / "s", [parts[0] | {"file": name}])


def test_a_damaged_folder_is_the_same_or_refused(tmp_path: Path) -> None:
    """200 folders, each with one fault in any file: bytes, cuts, swaps, parts of the manifest."""
    folder = tmp_path / "save-000001"
    parts = written(folder)
    (folder / checkpoint.STATE).write_text(
        json.dumps({n: {"__tensor__": n} for n in (*SHAPES, "head", "steps")})
    )
    sha = checkpoint.sha256(folder / checkpoint.STATE)
    hashes = {checkpoint.STATE: sha, "parts": checkpoint._digest(parts)}
    (folder / checkpoint.MANIFEST).write_text(json.dumps({"sha256": hashes, "parts": parts}))
    want = everything(checkpoint.load(folder))
    assert want.keys() == {f"/{n}" for n in values()}
    draws, refused = random.Random(0), 0
    files = sorted(folder.iterdir())
    for number in range(200):
        damaged = tmp_path / "other"
        shutil.copytree(folder, damaged)
        path = damaged / draws.choice(files).name
        raw = bytearray(path.read_bytes())
        place = draws.randrange(len(raw))
        if number % 4 == 0:
            path.write_bytes(raw[:place])
        elif number % 4 == 1:
            path.unlink()
        elif number % 4 == 2:
            path.write_bytes(
                raw[:place] + bytes(draws.randrange(256) for _ in range(4)) + raw[place:]
            )
        else:
            raw[place] ^= 1 << draws.randrange(8)
            path.write_bytes(raw)
        try:
            got = everything(checkpoint.load(damaged))
            assert got.keys() == want.keys()
            assert all(torch.equal(got[n], t) for n, t in want.items())
        except IntarsiaError as error:
            refused += 1
            assert isinstance(error, CheckpointError) and "want" in str(error), error
        shutil.rmtree(damaged)
    assert refused > 150, refused


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks children to kill")
def test_a_process_killed_while_all_write_loses_nothing(
    tmp_path: Path, forked: Callable[..., Any]
) -> None:
    """The other says so in time; the newest checkpoint is whole, the former or the new one."""
    code, out, err = forked(Path(__file__).with_name("killing_parts.py"), tmp_path, 3).wait(300)
    assert code == 0, err
    lines = [line.split(",") for line in out.splitlines()]
    assert lines[0] == ["whole", "0", "0", "2.0"], err
    assert len(lines) >= 8
    assert {tuple(rest) for _, *rest in lines[1:]} <= {
        ("-9", "3", "1.0"), ("-9", "3", "2.0"), ("-9", "0", "2.0"),
    }, lines  # fmt: skip
    assert {name[0] for name, *_ in lines[1:]} == {"0", "1"}, "either was killed"


def test_experts_of_another_model_are_refused(tmp_path: Path) -> None:
    """Models of fewer and of more experts are refused: missing weights must not become zeros."""
    part = SimpleNamespace(lot=lambda _: (torch.arange(4), 0, 1))
    pieces = Pieces(tmp_path / "s", written(tmp_path / "s"))
    patch = pytest.MonkeyPatch()
    patch.setattr("intarsia.parallel.attached.dist.get_rank", lambda _: 0)
    patch.setattr("intarsia.parallel.attached.dist.get_world_size", lambda _: 1)
    parts = Attached({})
    for value in (Stored(pieces, "up"), values()["up"]):
        with refused(CheckpointError, what="experts of a checkpoint"):
            parts._own_rows(part, "up", value)  # pyright: ignore
    patch.undo()
