"""One safetensors file of a whole model, into which each process writes its part.

The bytes are those that one process with the whole model would write, so that every reader of such
files reads it, and no process has room for more than its own experts.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from ..core.files import writing
from .pieces import Piece, apart
from .together import write_together
from .units import UnitAxes

if TYPE_CHECKING:
    from .parallelism import WholeModel

ALIGNED = 8  # a header's length is a multiple of so many bytes, blanks at its end


def write_folder(
    folder: str | Path,
    files: Mapping[str, Mapping[str, Tensor]],
    parts: WholeModel | None = None,
    *,
    before: Callable[[Path], object] = lambda scratch: None,
    after: Callable[[Path], object] = lambda scratch: None,
) -> Path:
    """Write weights of a model, and other files, as a folder that appears as a whole or not at all.

    files: file name -> tensors of the model's state by name, for each safetensors file. parts: this
      process's part of a model that is distributed over processes, which all call this; None = one
      process. before, after: functions of the new folder that write further files, called in the
      first process before the weights and after them. Returns the folder.
    Raises: TrainingError for a full disk, or a process that is gone.
    """
    folder = Path(folder)
    if parts is None or not parts.shared:
        with writing(folder) as scratch:
            scratch.mkdir()
            before(scratch)
            for name, tensors in files.items():
                safetensors.torch.save_file(apart(tensors), scratch / name)
            after(scratch)
        return folder
    # of a model that is shared out: each process writes into the same files
    first = dist.get_rank(parts.group) == 0

    def own(scratch: Path) -> None:
        """Write this process's share of each file into the folder `scratch`."""
        if first:
            before(scratch)
        for name, tensors in files.items():
            write_whole(scratch / name, parts.pieces(tensors), first=first)

    def finish(scratch: Path, _: object) -> None:
        after(scratch)

    return write_together(folder, own, finish, parts.group)


def write_whole(path: Path, tensors: Mapping[str, Tensor | Piece], *, first: bool) -> None:
    """Write this process's share of a safetensors file, which all processes write together.

    tensors: the model's, the same names in all processes; of experts, the pieces that are here.
      first: True in the process that writes the header and the tensors that all processes have.
      Processes may call it in any order, and at any time; the file is complete when all have
      returned. All need the same file system.
    Raises: OSError for a full disk.
    """
    header, starts, end = _header(
        {name: _shape(tensor) for name, tensor in tensors.items()}, tensors
    )
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        os.truncate(handle, end)  # alike in all: what others have written stays
        if first:
            _write_at(handle, memoryview(header), 0)
        for name, tensor in tensors.items():
            # experts are written by the processes that have them, all else by the first
            if isinstance(tensor, Piece):
                _write_rows(handle, tensor, starts[name])
            elif first:
                _write_at(handle, _bytes(tensor), starts[name])
        # the file is complete when the last process has synced its share
        os.fsync(handle)
    finally:
        os.close(handle)


def _sliced_units(piece: Piece) -> UnitAxes | None:
    """Return where the hidden units lie, if a piece has only a slice of them; else None."""
    return piece.units if piece.of > 1 else None


def _shape(tensor: Tensor | Piece) -> list[int]:
    """Return the shape (E, ...) of the whole weight; `tensor` may be a piece of it."""
    if isinstance(tensor, Tensor):
        return list(tensor.shape)
    shape = [tensor.experts, *tensor.value.shape[1:]]
    if (units := _sliced_units(tensor)) is not None:
        # a slice has 1 of `tensor.of` equal parts of the hidden units
        shape[units.axis] *= tensor.of
    return shape


def _header(
    shapes: Mapping[str, list[int]], tensors: Mapping[str, Tensor | Piece]
) -> tuple[bytes, dict[str, int], int]:
    """Return the header of a safetensors file, where each tensor begins, and the file's length."""
    values = {
        n: tensor.value if isinstance(tensor, Piece) else tensor for n, tensor in tensors.items()
    }
    # safetensors itself names the types and puts tensors in order
    empty = safetensors.torch.save({n: torch.empty(0, dtype=v.dtype) for n, v in values.items()})
    header: dict[str, Any] = json.loads(empty[8 : 8 + struct.unpack("<Q", empty[:8])[0]])
    offset, starts = 0, dict[str, int]()
    # empty tensors gave the order and types; true shapes and offsets go in their place
    for name, entry in header.items():
        starts[name], size = offset, math.prod(shapes[name]) * values[name].element_size()
        entry |= {"shape": shapes[name], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNED)
    raw = struct.pack("<Q", len(text)) + text
    return raw, {name: len(raw) + start for name, start in starts.items()}, len(raw) + offset


def _write_rows(handle: int, piece: Piece, start: int) -> None:
    units, shape = _sliced_units(piece), _shape(piece)
    if units is None and piece.part:
        return  # a bias after the hidden units: the first slice has it
    # bytes of an expert in the file
    row = math.prod(shape[1:]) * piece.value.element_size()
    # lines of a row; a slice has one contiguous part of each
    lines = 1 if units is None else math.prod(shape[1 : units.axis]) * units.runs
    # bytes of a slice in one line
    width = row // lines // (1 if units is None else piece.of)
    for expert, value in zip(piece.index.tolist(), piece.value, strict=True):
        raw, offset = _bytes(value), start + expert * row + piece.part * width
        for line in range(lines):
            part = raw[line * width : (line + 1) * width]
            _write_at(handle, part, offset + line * (row // lines))


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # pyright: ignore[reportArgumentType]


def _write_at(handle: int, raw: memoryview, offset: int) -> None:
    """Write all bytes of `raw` into a file, even if the system writes only some at once."""
    done = 0
    while done < len(raw):
        # pwrite may write less than it is given
        done += os.pwrite(handle, raw[done:], offset + done)
