"""A model with embedding tables that are written as rows of columns, where that is smaller."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...core.errors import CheckpointError, ShapeError, TargetError, TrainingError
from ...core.files import writing
from ...core.format import nbytes
from ...core.reading import read_tensors
from ...core.sealing import OPEN, check_file, seal_file
from ...formats import Columns
from ...formats.columns import MOST, break_even
from ...hosts.anatomy.origin import damaged
from ...schedules.masked_layers import EMBEDDINGS

PARTS = ("values", "columns", "row_offsets", "shape")
LARGE = 1 << 20  # numbers of a weight from which `unfilled` gives it no memory
BLOCK = 1 << 22  # numbers of a table that are decoded at a time


@dataclass(frozen=True)
class SavedTable:
    """Record of how one embedding table was written.

    name: of the weight; rows: as rows of (column, value) pairs, False = dense; density: share of
    its numbers that are not 0; break_even: density below which rows are smaller; bytes: as written;
    dense: bytes of the table as it was.
    """

    name: str
    rows: bool
    density: float
    break_even: float
    bytes: int
    dense: int

    def __str__(self) -> str:
        """Format the record as a line: form, density, and bytes before and after."""
        form = "rows" if self.rows else "dense"
        sizes = f"{self.bytes:,} of {self.dense:,} bytes"
        return (
            f"{self.name}: {form}, density {self.density:.3f} (rows are smaller below "
            f"{self.break_even:.3f}), {sizes}"
        )


def save_tables(
    model: nn.Module, path: str | Path, *, half: bool = False
) -> tuple[SavedTable, ...]:
    r"""Write a model to one safetensors file, with sparse embedding tables as CSR rows.

    For each embedding table, the numbers that are not 0 are written with their columns, if that
    takes less than the table; everything else is written as it is. half: tables are rounded to
    float16.
    Returns a record for each table: `print(*save_tables(model, path), sep="\\n")`.
    Raises: TargetError for a model without embeddings; TrainingError if it cannot be written.
    """
    tables = {
        f"{n}.weight".lstrip("."): m for n, m in model.named_modules() if isinstance(m, EMBEDDINGS)
    }
    if not tables:
        fix = "Write it with safetensors.torch.save_model."
        raise TargetError("model", got="no embedding table", want="one at least", fix=fix)
    stored: dict[str, Tensor] = {}
    lines: list[SavedTable] = []
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        if name not in tables:
            stored[name] = tensor.clone()  # tied weights are stored once for each name
            continue
        table = tensor.half() if half else tensor
        width, dense_bytes = table.shape[1], tensor.numel() * tensor.element_size()
        parts = Columns().encode(table) if width <= MOST else {}
        parts |= {"shape": torch.tensor(table.shape)} if parts else {}
        # rows of columns pay off below a density that depends on the width
        smaller = bool(parts) and nbytes(parts) < nbytes({"": table})
        stored |= {f"{name}.{p}": t for p, t in parts.items()} if smaller else {name: table.clone()}
        bytes_ = nbytes(parts if smaller else {"": table})
        density = int(table.count_nonzero()) / max(1, table.numel())
        even = break_even(width, table.element_size())
        lines.append(SavedTable(name, smaller, density, even, bytes_, dense_bytes))
    with writing(path) as scratch:
        save_file(stored, scratch, metadata={"format": "pt", **OPEN})
        seal_file(scratch)
    return tuple(lines)


class unfilled(TorchFunctionMode):
    """Mode of torch to build a model with large weights that have no memory until they are mapped.

    with unfilled():
        model = LightGcn().build(train)
    load_tables(model, path, mapped=True)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Create large weights on the meta device, and skip filling them with random numbers."""
        kwargs = kwargs or {}
        # modules allocate by torch.empty and then fill: both are skipped for large weights
        if func is torch.empty:
            shape = torch.Size(args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
            if shape.numel() >= LARGE:
                kwargs["device"] = "meta"
        first = args[0] if args else None
        is_filling = func.__name__.endswith("_") and not func.__name__.endswith("__")
        if is_filling and isinstance(first, Tensor) and first.is_meta:
            return first  # random numbers that would be overwritten
        return func(*args, **kwargs)


def load_tables(model: nn.Module, path: str | Path, *, mapped: bool = False) -> None:
    """Read a file that `save_tables` wrote into a model of the same names and shapes.

    mapped: weights become views of the file. The system reads the pages that are used, and drops
    them when memory is short, so that tables may be larger than memory (see `unfilled`).
    Those that were written as rows, or in another type, are decoded into a nameless file first.
    The file must not be changed; changes of a weight are private to the process.
    Raises: CheckpointError for a file that is damaged, or of another model.
    """
    try:
        check_file(Path(path))
    except OSError as error:
        raise damaged(Path(path), f"no readable safetensors file ({error})") from error
    put_tables(model, path, mapped)


def put_tables(model: nn.Module, path: str | Path, mapped: bool) -> None:
    """Read the tensors of a file with a checked digest into a model; see `load_tables`.

    mapped: weights become views of the file. Raises: CheckpointError.
    """
    try:
        stored: Mapping[str, Tensor] = read_tensors(path)  # the tensors are memory-mapped
    except (OSError, SafetensorError) as error:
        raise damaged(Path(path), f"no readable safetensors file ({error})") from error
    tables = {n.rpartition(".")[0] for n in stored if n.endswith(".row_offsets")}
    parts = {f"{name}.{part}" for name in tables for part in PARTS}
    # tensors that were written as they are
    state = {n: t for n, t in stored.items() if n not in parts}
    model_state = model.state_dict()
    for name in sorted(tables):
        try:
            encoded: dict[str, Any] = {part: stored[f"{name}.{part}"] for part in PARTS}
            shape = tuple(int(side) for side in encoded["shape"].tolist())
            if name not in model_state or shape != tuple(model_state[name].shape):
                raise ShapeError(name, got=shape, want="a table of the model", fix="")
            dtype = model_state[name].dtype
            state[name] = (
                _decode_mapped(encoded, shape, dtype)
                if mapped
                else Columns().decode(encoded, shape)
            )
        except (KeyError, ShapeError, TypeError, RuntimeError) as error:
            raise damaged(Path(path), f"{name!r} that does not fit ({error})") from error
    if mapped:
        state = {
            n: _convert_type(t, model_state[n].dtype) if n in model_state else t
            for n, t in state.items()
        }
    try:
        # assign: the parameter becomes the view of the file
        model.load_state_dict(state, assign=mapped)
    except RuntimeError as error:
        want, fix = "those of this model", "Build the model as it was when it was saved."
        raise CheckpointError(f"weights of {path}", got=str(error), want=want, fix=fix) from error


def _nameless_file_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Create a tensor of a shape and type with a temporary file as memory, freed with it."""
    size = torch.Size(shape).numel()
    if not size:
        return torch.zeros(shape, dtype=dtype)
    handle, name = tempfile.mkstemp(prefix="intarsia-table-")
    try:
        # a full disk is an error now, not a signal at a later write
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size * dtype.itemsize)
        return torch.from_file(name, shared=True, size=size, dtype=dtype).view(shape)
    except OSError as error:
        want = f"{size * dtype.itemsize:,} bytes in {tempfile.gettempdir()}"
        fix = "Free some, or name another folder: TMPDIR=/path"
        raise TrainingError("mapped table", got=error, want=want, fix=fix) from error
    finally:
        os.close(handle)
        os.unlink(name)  # the mapping keeps the file


def _row_slices(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of a table's rows, each of a few million numbers; shape: of the table."""
    rows = max(1, BLOCK // max(1, torch.Size(shape[1:]).numel()))
    return (slice(first, min(first + rows, shape[0])) for first in range(0, shape[0], rows))


def _decode_mapped(
    encoded: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Decode a table that is stored as rows into a file-backed tensor, some rows at a time."""
    table, offsets = _nameless_file_tensor(shape, dtype), encoded["row_offsets"].long()
    if len(offsets) != shape[0] + 1 or int(offsets[-1]) != len(encoded["values"]):
        got, fix = f"{len(offsets)} offsets", "Copy the file again."
        raise ShapeError("rows", got=got, want=f"{shape[0] + 1}", fix=fix)
    for rows in _row_slices(shape):
        # offsets of the block, counted from its own first value
        part = offsets[rows.start : rows.stop + 1]
        first, last = int(part[0]), int(part[-1])
        block = {"row_offsets": part - first}
        block |= {name: encoded[name][first:last] for name in ("values", "columns")}
        table[rows] = Columns().decode(block, (rows.stop - rows.start, *shape[1:])).to(dtype)
    return table


def _convert_type(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor to the model's type; a large one becomes a file-backed tensor."""
    if stored.dtype == dtype:
        return stored
    # small ones need no file
    if stored.numel() < LARGE or not stored.ndim:
        return stored.to(dtype)
    converted = _nameless_file_tensor(tuple(stored.shape), dtype)
    for rows in _row_slices(tuple(stored.shape)):
        converted[rows] = stored[rows].to(dtype)
    return converted
