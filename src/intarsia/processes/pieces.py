"""Weights: each process writes its part, and any number of processes reads the rows it needs.

A folder has one safetensors file for each process that wrote it, and `manifest.json`, which says
where each expert's rows are, with the SHA-256 of every one. Who reads some experts reads and checks
their rows alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..core.errors import CheckpointError
from ..core.files import unbroken
from ..core.reading import open_tensors
from .units import UnitAxes, put_part


@dataclass(frozen=True)
class Piece:
    """Rows of a weight of all experts, or of what an optimiser remembers of it.

    value: (n, ...), which this process has; units: where hidden units stand in it; index: (n,),
    the expert of each, of E = experts; part, of: which of how many slices of their hidden units.
    """

    value: Tensor
    units: UnitAxes | None
    index: Tensor
    part: int
    of: int
    experts: int


def write_file(path: Path, tensors: Mapping[str, Tensor | Piece]) -> dict[str, Any]:
    """Write this process's safetensors file; return its entry for the manifest.

    tensors: name -> a whole weight, or a `Piece` with some experts' rows of one.
    """
    entry: dict[str, Any] = {"file": path.name, "whole": {}, "pieces": {}}
    values: dict[str, Tensor] = {}
    for key, weight in tensors.items():
        # a whole weight has one digest, a piece one for each row, to be checked row by row
        values[key] = value = (weight.value if isinstance(weight, Piece) else weight).detach().cpu()
        if isinstance(weight, Tensor):
            entry["whole"][key] = _sha256(value)
            continue
        entry["pieces"][key] = {
            "units": None if weight.units is None else astuple(weight.units),
            "experts": weight.experts,
            "index": weight.index.tolist(),
            "part": weight.part,
            "of": weight.of,
            "sha256": [_sha256(row) for row in value],
        }
    safetensors.torch.save_file(apart(values), path)
    return entry | {"bytes": path.stat().st_size}


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU, each with contiguous memory of its own, for safetensors."""
    storages: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        storage = tensor.untyped_storage()
        # a view would bring all of its storage into the file
        covers = storage.nbytes() == tensor.numel() * tensor.element_size()
        if storage.data_ptr() in storages or not covers:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        # later tensors of the same memory are copied
        separate[name] = tensor
    return separate


def _sha256(tensor: Tensor) -> str:
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy()).hexdigest()  # pyright: ignore[reportArgumentType]


def _unit_axes(piece: Mapping[str, Any]) -> UnitAxes | None:
    """Return along which axis of a weight an expert's hidden units lie; None for no such axis."""
    if piece["units"] is None:
        return None
    axis, runs, width = map(int, piece["units"])
    if axis not in (1, 2) or min(runs, width) < 1:
        raise ValueError(f"hidden units at {piece['units']}")
    return UnitAxes(axis, runs, width)


class Pieces:
    """The weights of a folder, opened: all experts are there, and every file is.

    manifests: the entries that `write_file` returned in each process, by rank.
    Raises: CheckpointError for a file that is missing or short, experts that no file has; in
    `tensor` and `rows`, for bytes that changed.
    """

    def __init__(self, folder: Path, manifests: Sequence[Mapping[str, Any]]) -> None:
        self.folder = folder
        try:
            files = [(str(manifest["file"]), int(manifest["bytes"])) for manifest in manifests]
            self.whole = {
                k: (manifest["file"], sha)
                for manifest in manifests
                for k, sha in manifest["whole"].items()
            }
            self.pieces: dict[str, list[Any]] = {}
            for manifest in manifests:
                # each piece remembers its file: experts of one weight are spread over several
                for key, piece in manifest["pieces"].items():
                    located = piece | {"file": manifest["file"], "units": _unit_axes(piece)}
                    self.pieces.setdefault(key, []).append(located)
            self._check_all_there(files)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged("its manifest", f"{type(error).__name__}: {error}") from error

    def __contains__(self, key: str) -> bool:
        return key in self.whole or key in self.pieces

    def tensor(self, key: str) -> Tensor:
        """Read the weight `key`, which one process wrote whole.  Raises: CheckpointError."""
        file, sha = self.whole[key]
        with self._opened(file) as opened:
            value: Tensor = opened.get_tensor(key).clone()
        return self._check_digest(value, sha, f"{key!r} in {file}")

    def rows(self, key: str, index: Tensor) -> Tensor:
        """Read the rows of some experts of a weight, from whichever files have them.

        index: (n,), the experts. Returns (n, ...).
        Raises: CheckpointError for bytes that changed.
        """
        # the row of the result that each wanted expert gets
        row_of = {int(expert): row for row, expert in enumerate(index)}
        weight: Tensor | None = None
        for piece in self.pieces[key]:
            # (row of the file, row of the result) of the experts that this file has
            matches = [(n, row_of[e]) for n, e in enumerate(piece["index"]) if e in row_of]
            if not matches:
                continue
            with self._opened(piece["file"]) as opened:
                # memory-mapped: only these rows are read from the disk
                stored = opened.get_slice(key)
                rows = [
                    self._check_digest(
                        stored[n : n + 1][0],
                        piece["sha256"][n],
                        f"{key!r} of expert {piece['index'][n]} in {piece['file']}",
                    )
                    for n, _ in matches
                ]
            # slices of hidden units from several files make up one expert
            targets = torch.tensor([place for _, place in matches])
            share = len(index), targets, piece["part"], piece["of"]
            weight = put_part(piece["units"], weight, torch.stack(rows), *share)
        if weight is None:  # no expert is wanted
            weight = self.all(key)[:0]
        return weight

    def all(self, key: str) -> Tensor:
        """Read the rows of all experts."""
        return self.rows(key, torch.arange(self.pieces[key][0]["experts"]))

    def _check_all_there(self, files: list[tuple[str, int]]) -> None:
        """Raise CheckpointError unless all files, and all parts of all experts, are there."""
        for name, size in files:
            path = self.folder / name
            # a name with a folder in it could lead out of the checkpoint
            if path.name != name or not path.is_file():
                expected = f"{len(files)} files, one of each process"
                raise self._damaged(name, "no such file", want=expected)
            if path.stat().st_size != size:
                raise self._damaged(name, f"{path.stat().st_size} bytes", want=f"{size}")
        for key, pieces in self.pieces.items():
            # every slice of every expert must be in some file
            present = {(e, piece["part"]) for piece in pieces for e in piece["index"]}
            count = pieces[0]["experts"] * pieces[0]["of"]
            if len(present) != count or any(len(p["sha256"]) != len(p["index"]) for p in pieces):
                got, want = f"{len(present)} parts of experts of {key!r}", f"{count}"
                raise self._damaged("its manifest", got, want=want)

    @contextmanager
    def _opened(self, file: str) -> Iterator[Any]:
        try:
            with unbroken():
                opened = open_tensors(self.folder / file)
            # errors of reading come from inside the block, errors of opening from before it
            with opened:
                yield opened
        except (OSError, IndexError, SafetensorError) as error:
            raise self._damaged(file, f"{type(error).__name__}: {error}") from error

    def _check_digest(self, value: Tensor, sha: str, subject: str) -> Tensor:
        if _sha256(value) != sha:
            raise self._damaged(subject, "bytes that changed after they were written")
        return value

    def _damaged(
        self, subject: str, got: str, want: str = "the files as they were written"
    ) -> CheckpointError:
        fix = "Copy the whole folder again, or go on from another checkpoint."
        return CheckpointError(f"{subject}, checkpoint {self.folder}", got=got, want=want, fix=fix)


@dataclass(frozen=True)
class Stored:
    """A weight of all experts in a folder; its rows can be read alone."""

    pieces: Pieces
    key: str

    def __len__(self) -> int:
        return int(self.pieces.pieces[self.key][0]["experts"])

    def rows(self, index: Tensor) -> Tensor:
        return self.pieces.rows(self.key, index)

    def all(self) -> Tensor:
        return self.pieces.all(self.key)
