"""What a walk has finished: blocks and hidden states on disk, rows of a table, lines of progress.

walk.json              what the walk is of, and for each finished block its rows and its file's hash
block-000.safetensors  the edited weights of a block, and what a method keeps of it beside them
before-000.safetensors its weights as they were, while the walk is under way
hidden-000.safetensors what the next block is given, batch by batch; only the newest is there
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ...core.errors import CheckpointError, ConfigError
from ...core.files import read_json, write_json, writing
from ...core.reading import read_tensors
from ...core.sealing import check_sealed, sealed
from ...train.checkpoint import sha256
from ...train.resume import check_same
from ..anatomy.origin import damaged

if TYPE_CHECKING:
    from .walk import Flow, Stop

RECORD = "walk.json"
BESIDE = "+"  # begins the names of what is no weight; no path in a model begins so
Tensors = Mapping[str, torch.Tensor]


def _block(row: dict[str, Any]) -> dict[str, Any]:
    """Return what is written of a finished block.  Raises: KeyError, TypeError, ValueError."""
    numbers = [row["seconds"], row["error"] or 0.0]
    numbers += [n for layer in row["layers"] for n in (layer["density"] or 0.0, layer["weights"])]
    if not all(isinstance(n, int | float) for n in numbers):
        raise TypeError(f"numbers of block {row['block']}")
    texts = [row["block"], row["sha256"], *(layer["layer"] for layer in row["layers"])]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"names of block {row['block']}")
    return row


class Kept:
    """out: the folder, None = nothing is written; identity: what a walk must share to go on.

    report: is given a line for each block.
    Raises: ConfigError for a folder with a walk in it, unless `resume`; CheckpointError for files
    of another walk, or damaged ones.
    """

    def __init__(
        self,
        out: Path | None,
        identity: Mapping[str, Any],
        *,
        resume: bool = False,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.out, self.identity, self.report = out, dict(identity), report
        self.blocks: list[dict[str, Any]] = []
        self.noted: list[tuple[Stop, Mapping[str, torch.Tensor] | Path]] = []
        self.total = 0
        self.beside: Callable[[Stop], Tensors] | None = None
        self.taken: Callable[[Stop, Tensors], None] | None = None
        if out is None:
            if resume:
                want, fix = "the folder of the walk to go on with", "Pass out='that/folder'."
                raise ConfigError("resume", got="no folder", want=want, fix=fix)
            return
        path = out / RECORD
        if path.is_file():
            if not resume:
                got, want = "a folder with a walk in it", "a new one, or resume=True"
                fix = "Choose another folder, or go on with resume=True."
                raise ConfigError(f"out {str(out)!r}", got=got, want=want, fix=fix)
            try:
                found = check_sealed(path, read_json(path))
                saved, self.blocks = dict(found["identity"]), list(map(_block, found["blocks"]))
                self.hidden_hash = found["hidden"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise damaged(path, f"no record of a walk ({error})", "sparsify") from error
            check_same(saved, json.loads(json.dumps(self.identity)))

    def with_beside(
        self, beside: Callable[[Stop], Tensors], taken: Callable[[Stop, Tensors], None]
    ) -> Kept:
        """Keep more of each block than its weights.

        beside: what, of a block that is finished; taken: is given it when a walk goes on.
        """
        self.beside, self.taken = beside, taken
        return self

    def note(self, stop: Stop) -> None:
        """Remember a block's weights before they are edited: on disk, if there is a folder."""
        old = {path: m.stored for path, m in stop.layers.items()}
        held: Mapping[str, torch.Tensor] | Path = old
        if self.out is None:
            stacks = {(m.owner, m.name): m for m in stop.layers.values() if m.index is not None}
            for m in stacks.values():
                m.detach_stack()
        else:
            held = self.out / f"before-{len(self.noted):03}.safetensors"
            self._write(held.name, {p: w.cpu().contiguous() for p, w in old.items()})
        self.noted.append((stop, held))

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Inside, blocks that are noted may be edited; after an error they are what they were."""
        try:
            yield
        except BaseException:
            for stop, held in reversed(self.noted):
                old = read_tensors(held) if isinstance(held, Path) else held
                for path, weight in old.items():
                    stop.layers[path].put(weight.clone() if isinstance(held, Path) else weight)
            raise
        finally:
            for _, held in self.noted:
                if isinstance(held, Path):
                    held.unlink(missing_ok=True)

    def restored(self, stops: Sequence[Stop], flow: Flow) -> list[dict[str, Any]]:
        """Put the finished blocks' weights into the model, and the hidden states behind them."""
        self.total = len(stops)
        done = zip(self.blocks, stops, strict=False)
        for number, (block, stop) in enumerate(done):
            self.note(stop)
            name = f"block-{number:03}.safetensors"
            tensors = self._read(name, block["sha256"])
            more = {n.removeprefix(BESIDE): tensors.pop(n) for n in [*tensors] if n[0] == BESIDE}
            shapes = {path: m.stored.shape for path, m in stop.layers.items()}
            if {path: weight.shape for path, weight in tensors.items()} != shapes:
                raise damaged((self.out or Path()) / name, "weights of other layers", "sparsify")
            for path, weight in tensors.items():
                stop.layers[path].put(weight)
            if self.taken is not None:
                self.taken(stop, more)
        if self.blocks and flow.hidden:
            states = self._read(f"hidden-{len(self.blocks) - 1:03}.safetensors", self.hidden_hash)
            like = flow.hidden[0]
            flow.hidden[:] = [states[str(i)].to(like.device) for i in range(len(flow.hidden))]
        return self.blocks

    def finished(
        self, stop: Stop, rows: list[dict[str, Any]], flow: Flow, more: Mapping[str, Any]
    ) -> None:
        """Note a block, write it, and say so."""
        number = len(self.blocks)
        block: dict[str, Any] = {"block": stop.path, **more, "layers": rows, "sha256": ""}
        if self.out is not None:
            weights = {p: m.stored.cpu().contiguous() for p, m in stop.layers.items()}
            more = {} if self.beside is None else self.beside(stop)
            weights |= {BESIDE + name: t.contiguous() for name, t in more.items()}
            block["sha256"] = self._write(f"block-{number:03}.safetensors", weights)
            states = {str(i): h.cpu().contiguous() for i, h in enumerate(flow.hidden)}
            self.hidden_hash = self._write(f"hidden-{number:03}.safetensors", states)
        self.blocks.append(block)
        if self.out is not None:
            record = {"identity": self.identity, "blocks": self.blocks, "hidden": self.hidden_hash}
            write_json(self.out / RECORD, sealed(record), indent=None)
            (self.out / f"hidden-{number - 1:03}.safetensors").unlink(missing_ok=True)
        if self.report is not None:
            self.report(self.line())

    def line(self) -> str:
        """block 12/30  model.layers.11  density .400  error .061  2.1 s  left 1:02"""
        block, done = self.blocks[-1], len(self.blocks)
        rows = [row for row in block["layers"] if row["density"] is not None]
        weights = sum(row["weights"] for row in rows)
        density = sum(row["density"] * row["weights"] for row in rows) / max(1, weights)
        error = "" if block["error"] is None else f"  error {block['error']:.3f}"
        left = round(sum(b["seconds"] for b in self.blocks) / done * (self.total - done))
        told = [f"  {row['layer']}: {row['told']}" for row in block["layers"] if row.get("told")]
        return (
            f"block {done}/{self.total}  {block['block']}  density {density:.3f}{error}  "
            f"{block['seconds']:.1f} s  left {left // 60}:{left % 60:02}" + "".join(told)
        )

    def _write(self, name: str, tensors: Mapping[str, torch.Tensor]) -> str:
        assert self.out is not None
        with writing(self.out / name) as scratch:
            save_file(dict(tensors), scratch)
        return sha256(self.out / name)

    def _read(self, name: str, digest: str) -> dict[str, torch.Tensor]:
        assert self.out is not None
        path = self.out / name
        try:
            if sha256(path) != digest:
                raise damaged(path, "other bytes than were written", "sparsify")
            # off the memory map: the file goes away with the next block
            return {n: t.clone() for n, t in read_tensors(path).items()}
        except (OSError, SafetensorError) as error:
            got, fix = error, "Restore it from a copy, or start again in another folder."
            raise CheckpointError(str(path), got=got, want="the file", fix=fix) from error
