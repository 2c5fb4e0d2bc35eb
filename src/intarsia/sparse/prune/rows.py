"""Calibration rows: as batches that a model takes, checked, and told apart by a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ...core.change import Change
from ...core.errors import DataError
from .walk import inputs_of

ROWS, LENGTH, BATCH = 8, 32, 8
OF_TRAINING = 128  # number of training samples that are taken for calibration


def check_rows(batches: Sequence[Any]) -> None:
    """Check that there are enough calibration samples, and that texts are long enough.

    Raises: DataError for none, for a batch that is no tensor, and for too few or too short ones.
    """
    for batch in batches:
        check_tensors(inputs_of(batch))
    shapes = [tuple(t.shape) for b in batches if (t := _token_ids(inputs_of(b))) is not None]
    count, length = sum(s[0] for s in shapes), min((s[1] for s in shapes), default=0)
    pictures = [t for b in batches for t in _named_tensors(inputs_of(b)).values() if t.dim()]
    # pictures: each has many patches, so a few are enough
    if not shapes and any(map(len, pictures)):
        return
    if count < ROWS or length < LENGTH:
        got = f"{count} rows of {length} tokens and more"
        want = f"at least {ROWS} rows of {LENGTH} tokens, to estimate moments of all channels"
        fix = "Pass more or longer rows: load_calibration('mixed', tokenizer, length=512).train."
        raise DataError("calibration", got=got, want=want, fix=fix)


def check_tensors(inputs: Any) -> None:
    """Check that all inputs of a batch are tensors, not texts, for example.  Raises: DataError."""
    for name, value in _named_tensors(inputs).items():
        if not isinstance(value, Tensor):
            got = f"{f'{name!r}, ' if name else ''}a {type(value).__name__}"
            want, fix = "rows of tokens or pictures, as tensors", "Load texts as rows of tokens: "
            fix += "load_calibration('mixed', tokenizer, length=512).train."
            raise DataError("calibration", got=got, want=want, fix=fix)


def _token_ids(inputs: Any) -> Tensor | None:
    """Return the token ids (B, T) of a batch; None for pictures and the like."""
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dim() != 2:
        return None
    return ids


def digest_of(batches: Sequence[Any]) -> str:
    """Return the SHA-256 of calibration data: names, types, shapes and numbers."""
    total = hashlib.sha256()
    for batch in batches:
        inputs = inputs_of(batch)
        parts = inputs if isinstance(inputs, Mapping) else {"x": inputs}
        for name in sorted(parts):
            value = parts[name].detach().cpu().contiguous()
            # names and shapes too, or [1, 2] and [[1], [2]] would be the same rows
            total.update(f"{name}:{value.dtype}:{tuple(value.shape)}\n".encode())
            total.update(value.view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return total.hexdigest()


def batched(calib: Any, size: int = BATCH) -> list[Any]:
    """Group calibration samples into batches that a model takes; equal shapes are stacked.

    calib: a tensor (N, ...), a data set or a list of samples ({"input_ids": (T,)}, or (input,
    label)), or batches already, in a list, a data loader or another iterable.
    Raises: DataError for anything else.
    """
    if isinstance(calib, Tensor):
        return list(calib.split(size))
    rows = [row[0] if isinstance(row, (tuple, list)) else row for row in _list_items(calib)]
    for row in rows:
        check_tensors(row)
    if rows and all(_is_row(row) for row in rows):
        groups: list[list[Any]] = []
        for row in rows:
            shape = {n: tuple(t.shape) for n, t in _named_tensors(row).items()}
            last = groups[-1] if groups else []
            # only neighbours are joined, so that rows keep their order
            alike = last and shape == {
                n: tuple(t.shape) for n, t in _named_tensors(last[0]).items()
            }
            if alike and len(last) < size:
                last.append(row)
            else:
                groups.append([row])
        return [_stack_rows(group) for group in groups]
    return rows


@runtime_checkable
class Numbered(Protocol):
    """Rows that are read by number, as a loader reads a data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Any: ...


def _list_items(calib: Any) -> list[Any]:
    by_number = isinstance(calib, Numbered)
    if isinstance(calib, (str, Mapping)) or not (by_number or isinstance(calib, Iterable)):
        fix = "Pass a list of rows or batches, such as [batch], or load_texts(...).train."
        got, want = f"a {type(calib).__name__}", "rows or batches"
        raise DataError("calibration", got=got, want=want, fix=fix)
    source: Any = calib
    return [source[i] for i in range(len(source))] if by_number else list(source)


def _is_row(row: Any) -> bool:
    """Return True for a single sample, False for a batch: (T,) ids or a (C, H, W) picture."""
    ids = row.get("input_ids") if isinstance(row, Mapping) else row
    return isinstance(ids, Tensor) and ids.dim() == (3 if ids.is_floating_point() else 1)


def _named_tensors(row: Any) -> dict[str, Tensor]:
    """Return a row's tensors by name, without labels."""
    named = row if isinstance(row, Mapping) else {"": row}
    return {n: t for n, t in named.items() if n != "labels"}


def _stack_rows(rows: Sequence[Any]) -> Any:
    """Stack samples of equal shapes into a batch: a tensor, or a mapping of tensors."""
    named = {
        n: torch.stack([_named_tensors(row)[n] for row in rows]) for n in _named_tensors(rows[0])
    }
    return named if isinstance(rows[0], Mapping) else named[""]


def training_rows(change: Change, train: Any) -> list[Any]:
    """Return batches of 128 samples, evenly spread over the training data, to calibrate a change.

    Empty for a change that reads no data, such as an adapter; with their labels, and four times as
    many, for one that needs "labels".
    """
    needs = change.needs
    if train is None or not needs:
        return []
    # labels are for gradients of a loss, which vary more than moments of inputs
    count = 4 * OF_TRAINING if "labels" in needs else OF_TRAINING
    # evenly spread, since a data set may be sorted by class or source
    step = max(1, len(train) // count)
    rows = [train[i] for i in range(0, len(train), step)][:count]
    if "labels" in needs:
        return [default_collate(rows[i : i + 64]) for i in range(0, len(rows), 64)]
    return batched(rows)
