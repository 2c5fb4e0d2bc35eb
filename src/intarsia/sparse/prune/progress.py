"""What a walk has finished: blocks and hidden states on disk, rows of a table, lines of progress.

walk.json              what the walk is of, and for each finished block its rows and its file's hash
block-000.safetensors  the edited weights of a block, and the tensors that a method keeps with them
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
from ...hosts.anatomy.origin import damaged
from ...train.checkpoint import sha256
from ...train.resume import check_same

if TYPE_CHECKING:
    from .walk import Flow, Stop

RECORD = "walk.json"
# first character of names of tensors that are no weights; no path in a model begins with it
BESIDE = "+"
Tensors = Mapping[str, torch.Tensor]


def _checked_block(row: dict[str, Any]) -> dict[str, Any]:
    """Check the types in the record of a finished block, and return the record."""
    # a damaged record must fail here, not in a table that is printed hours later
    numbers = [row["seconds"], row["error"] or 0.0]
    numbers += [n for layer in row["layers"] for n in (layer["density"] or 0.0, layer["weights"])]
    if not all(isinstance(n, int | float) for n in numbers):
        raise TypeError(f"numbers of block {row['block']}")
    texts = [row["block"], row["sha256"], *(layer["layer"] for layer in row["layers"])]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"names of block {row['block']}")
    return row


class Kept:
    """Progress of a method that edits a model block by block: finished blocks on disk, rows, lines.

    out: the folder, None = nothing is written; identity: settings that an interrupted run and the
    run that resumes it must share.
    report: function that is given a line of text for each block.
    Raises: ConfigError for a folder with an earlier run in it, unless `resume`; CheckpointError for
    files of another run, or damaged ones.
    """

    def __init__(
        self,
        out: Path | None,
        identity: Mapping[str, Any],
        *,
        resume: bool = False,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Open the record of the blocks that were edited so far, or begin one."""
        self.out, self.identity, self.report = out, dict(identity), report
        self.blocks: list[dict[str, Any]] = []
        self.noted: list[tuple[Stop, Mapping[str, torch.Tensor] | Path]] = []
        self.total = 0
        self.tensors_of: Callable[[Stop], Tensors] | None = None
        self.on_resume: Callable[[Stop, Tensors], None] | None = None
        if out is None:
            if resume:
                want, fix = "the folder of the run to continue", "Pass out='that/folder'."
                raise ConfigError("resume", got="no folder", want=want, fix=fix)
            return
        path = out / RECORD
        if path.is_file():
            if not resume:
                got, want = "a folder with a run in it", "a new one, or resume=True"
                fix = "Choose another folder, or continue with resume=True."
                raise ConfigError(f"out {str(out)!r}", got=got, want=want, fix=fix)
            try:
                content = check_sealed(path, read_json(path))
                saved, self.blocks = (
                    dict(content["identity"]),
                    list(map(_checked_block, content["blocks"])),
                )
                self.hidden_hash = content["hidden"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise damaged(path, f"no record of a run ({error})", "sparsify") from error
            # compared after a pass through JSON, which turns tuples into lists
            check_same(saved, json.loads(json.dumps(self.identity)))

    def with_beside(
        self, tensors_of: Callable[[Stop], Tensors], on_resume: Callable[[Stop, Tensors], None]
    ) -> Kept:
        """Save further tensors of each block in the file of its weights; return self.

        tensors_of: function from a finished block to its tensors by name; on_resume: is called with
        the block and these tensors when an interrupted run is resumed.
        """
        self.tensors_of, self.on_resume = tensors_of, on_resume
        return self

    def note(self, stop: Stop) -> None:
        """Save a block's weights, in a file or in memory, to undo an edit of them."""
        weights = {path: m.stored for path, m in stop.layers.items()}
        backup: Mapping[str, torch.Tensor] | Path = weights
        if self.out is None:
            # layers get a new tensor when edited; a stack is edited in place, and so is copied once
            stacks = {(m.owner, m.name): m for m in stop.layers.values() if m.index is not None}
            for m in stacks.values():
                m.detach_stack()
        else:
            backup = self.out / f"before-{len(self.noted):03}.safetensors"
            self._write(backup.name, {p: w.cpu().contiguous() for p, w in weights.items()})
        self.noted.append((stop, backup))

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Restore the weights saved by `note` if the body of the `with` raises."""
        try:
            yield
        except BaseException:
            # backwards, so that a weight edited twice ends as it was at first
            for stop, backup in reversed(self.noted):
                weights = read_tensors(backup) if isinstance(backup, Path) else backup
                for path, weight in weights.items():
                    stop.layers[path].put(weight.clone() if isinstance(backup, Path) else weight)
            raise
        finally:
            for _, backup in self.noted:
                if isinstance(backup, Path):
                    backup.unlink(missing_ok=True)

    def restored(self, stops: Sequence[Stop], flow: Flow) -> list[dict[str, Any]]:
        """Load the weights and hidden states of the blocks that an interrupted run has finished.

        stops: all blocks in order, changed in place; flow: gets the hidden states behind the last
        finished block. Returns the records of the finished blocks.
        """
        self.total = len(stops)
        done = zip(self.blocks, stops, strict=False)
        for number, (block, stop) in enumerate(done):
            self.note(stop)
            name = f"block-{number:03}.safetensors"
            tensors = self._read(name, block["sha256"])
            extra = {n.removeprefix(BESIDE): tensors.pop(n) for n in [*tensors] if n[0] == BESIDE}
            shapes = {path: m.stored.shape for path, m in stop.layers.items()}
            if {path: weight.shape for path, weight in tensors.items()} != shapes:
                raise damaged((self.out or Path()) / name, "weights of other layers", "sparsify")
            for path, weight in tensors.items():
                stop.layers[path].put(weight)
            if self.on_resume is not None:
                self.on_resume(stop, extra)
        # the walk resumes where the hidden states stand: behind the last finished block
        if self.blocks and flow.hidden:
            states = self._read(f"hidden-{len(self.blocks) - 1:03}.safetensors", self.hidden_hash)
            like = flow.hidden[0]
            flow.hidden[:] = [states[str(i)].to(like.device) for i in range(len(flow.hidden))]
        return self.blocks

    def finished(
        self, stop: Stop, rows: list[dict[str, Any]], flow: Flow, figures: Mapping[str, Any]
    ) -> None:
        """Record a finished block, write its weights and the hidden states, and report a line."""
        number = len(self.blocks)
        block: dict[str, Any] = {"block": stop.path, **figures, "layers": rows, "sha256": ""}
        if self.out is not None:
            weights = {p: m.stored.cpu().contiguous() for p, m in stop.layers.items()}
            # a "+" keeps them apart from weights: their paths never begin so
            extra = {} if self.tensors_of is None else self.tensors_of(stop)
            weights |= {BESIDE + name: t.contiguous() for name, t in extra.items()}
            block["sha256"] = self._write(f"block-{number:03}.safetensors", weights)
            states = {str(i): h.cpu().contiguous() for i, h in enumerate(flow.hidden)}
            self.hidden_hash = self._write(f"hidden-{number:03}.safetensors", states)
        self.blocks.append(block)
        if self.out is not None:
            record = {"identity": self.identity, "blocks": self.blocks, "hidden": self.hidden_hash}
            write_json(self.out / RECORD, sealed(record), indent=None)
            # the record that names the new file is written before the old one is deleted: if the
            # process
            # is killed in between, both are there
            (self.out / f"hidden-{number - 1:03}.safetensors").unlink(missing_ok=True)
        if self.report is not None:
            self.report(self.line())

    def line(self) -> str:
        """Format the newest block, as "block 12/30  model.layers.11  density .400  left 1:02"."""
        block, done = self.blocks[-1], len(self.blocks)
        rows = [row for row in block["layers"] if row["density"] is not None]
        # mean over layers, weighted by their numbers of weights
        weights = sum(row["weights"] for row in rows)
        density = sum(row["density"] * row["weights"] for row in rows) / max(1, weights)
        error = "" if block["error"] is None else f"  error {block['error']:.3f}"
        # assumes that the remaining blocks take as long as those so far
        seconds_left = round(sum(b["seconds"] for b in self.blocks) / done * (self.total - done))
        notes = [f"  {row['layer']}: {row['told']}" for row in block["layers"] if row.get("told")]
        return (
            f"block {done}/{self.total}  {block['block']}  density {density:.3f}{error}  "
            f"{block['seconds']:.1f} s  left {seconds_left // 60}:{seconds_left % 60:02}"
            + "".join(notes)
        )

    def _write(self, name: str, tensors: Mapping[str, torch.Tensor]) -> str:
        """Write tensors to a safetensors file of the folder; return the file's SHA-256."""
        assert self.out is not None
        with writing(self.out / name) as scratch:
            save_file(dict(tensors), scratch)
        return sha256(self.out / name)

    def _read(self, name: str, digest: str) -> dict[str, torch.Tensor]:
        """Read the tensors of a file in the folder; digest: its SHA-256 when it was written."""
        assert self.out is not None
        path = self.out / name
        try:
            if sha256(path) != digest:
                raise damaged(path, "other bytes than were written", "sparsify")
            # copied from the memory map, since the file is deleted with the next block
            return {n: t.clone() for n, t in read_tensors(path).items()}
        except (OSError, SafetensorError) as error:
            got, fix = error, "Restore it from a copy, or start again in another folder."
            raise CheckpointError(str(path), got=got, want="the file", fix=fix) from error
