"""Rows of tokens as batches: the model's arguments, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..train.order import pair, stack

Batch = tuple[dict[str, Tensor], Tensor]  # arguments of the model, labels (B, T)


def batch_of(rows: Sequence[Any], device: torch.device | None = None) -> Batch:
    """Rows as the model's arguments and labels, padded; on the CPU, or a device.

    rows: of `load_texts`, or token ids (T,), each its own label.
    """
    ids = [r.cpu() if isinstance(r, Tensor) else r for r in rows]
    pairs = [({"input_ids": r}, r) if isinstance(r, Tensor) else pair(r) for r in ids]
    inputs, labels = stack(pairs)
    assert isinstance(inputs, dict)
    return {name: part.to(device) for name, part in inputs.items()}, labels.to(device)


def batches(rows: Sequence[Any], size: int, device: torch.device | None = None) -> list[Batch]:
    """All rows, so many at a time."""
    ends = [(at, min(at + size, len(rows))) for at in range(0, len(rows), size)]
    return [batch_of([rows[i] for i in range(at, end)], device) for at, end in ends]


def inputs_of(
    rows: Sequence[Any], size: int, device: torch.device | None = None
) -> list[dict[str, Tensor]]:
    """`batches` without labels."""
    return [inputs for inputs, _ in batches(rows, size, device)]


def first_rows(rows: Sequence[Any], count: int) -> list[Any]:
    """At most so many rows, from the first."""
    return [rows[i] for i in range(min(count, len(rows)))]


def there(of: Tensor, batch: Batch) -> Tensor:
    """Rows of tokens that are no padding.  of: (B, T, n) or (B T, n) -> (N, n)."""
    mask = batch[0]["attention_mask"].bool().flatten().to(of.device)
    return of.reshape(len(mask), -1)[mask]
