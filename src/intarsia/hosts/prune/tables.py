"""A model whose embedding tables are written as rows of columns, where that is smaller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...core.errors import CheckpointError, ShapeError, TargetError
from ...core.files import writing
from ...core.format import nbytes
from ...formats import Columns
from ...formats.columns import MOST, break_even
from ...schedules.masked_layers import EMBEDDINGS
from ..anatomy.origin import damaged

PARTS = ("values", "columns", "row_offsets", "shape")


@dataclass(frozen=True)
class SavedTable:
    """A table as it was written.  bytes: of it; dense: of the whole table in its own type."""

    name: str
    rows: bool
    density: float
    break_even: float
    bytes: int
    dense: int

    def __str__(self) -> str:
        how = "rows" if self.rows else "dense"
        sizes = f"{self.bytes:,} of {self.dense:,} bytes"
        return (
            f"{self.name}: {how}, density {self.density:.3f} (rows are smaller below "
            f"{self.break_even:.3f}), {sizes}"
        )


def save_tables(
    model: nn.Module, path: str | Path, *, half: bool = False
) -> tuple[SavedTable, ...]:
    """Write a model's parameters and buffers as one safetensors file, its tables as CSR rows.

    Of an embedding the weights that are not 0 are written with their columns, where that takes less
    than the table; all else is written as it is.  half: tables are rounded to float16.
    Returns a line for each table: `print(*save_tables(model, path), sep="\\n")`.
    Raises: TargetError for a model without embeddings; TrainingError if it cannot be written.
    """
    found = {
        f"{n}.weight".lstrip("."): m for n, m in model.named_modules() if isinstance(m, EMBEDDINGS)
    }
    if not found:
        fix = "Write it with safetensors.torch.save_model."
        raise TargetError("model", got="no embedding table", want="one at least", fix=fix)
    stored: dict[str, Tensor] = {}
    lines: list[SavedTable] = []
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        if name not in found:
            stored[name] = tensor.clone()  # of tied weights each has its own
            continue
        table = tensor.half() if half else tensor
        width, whole = table.shape[1], tensor.numel() * tensor.element_size()
        parts = Columns().encode(table) if width <= MOST else {}
        parts |= {"shape": torch.tensor(table.shape)} if parts else {}
        smaller = bool(parts) and nbytes(parts) < nbytes({"": table})
        stored |= {f"{name}.{p}": t for p, t in parts.items()} if smaller else {name: table.clone()}
        bytes_ = nbytes(parts if smaller else {"": table})
        density = int(table.count_nonzero()) / max(1, table.numel())
        even = break_even(width, table.element_size())
        lines.append(SavedTable(name, smaller, density, even, bytes_, whole))
    with writing(path) as scratch:
        save_file(stored, scratch, metadata={"format": "pt"})
    return tuple(lines)


def load_tables(model: nn.Module, path: str | Path) -> None:
    """Read what `save_tables` wrote into a model of the same names and shapes.

    Raises: CheckpointError for a file that is damaged, or of another model.
    """
    try:
        stored: Mapping[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise damaged(Path(path), f"no readable safetensors file ({error})") from error
    tables = {n.rpartition(".")[0] for n in stored if n.endswith(".row_offsets")}
    parts = {f"{name}.{part}" for name in tables for part in PARTS}
    state = {n: t for n, t in stored.items() if n not in parts}
    own = model.state_dict()
    for name in sorted(tables):
        try:
            held: dict[str, Any] = {part: stored[f"{name}.{part}"] for part in PARTS}
            shape = tuple(int(side) for side in held["shape"].tolist())
            if name not in own or shape != tuple(own[name].shape):
                raise ShapeError(name, got=shape, want="a table of the model", fix="")
            state[name] = Columns().decode(held, shape)
        except (KeyError, ShapeError, TypeError, RuntimeError) as error:
            raise damaged(Path(path), f"{name!r} that does not fit ({error})") from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        want, fix = "those of this model", "Build the model as it was when it was saved."
        raise CheckpointError(f"weights of {path}", got=str(error), want=want, fix=fix) from error
