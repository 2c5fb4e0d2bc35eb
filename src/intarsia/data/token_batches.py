"""Rows of tokens as batches: the model's arguments, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..train.order import pair, stack

Batch = tuple[dict[str, Tensor], Tensor]  # arguments of the model, labels (B, T)


def batch_of(rows: Sequence[Any], device: torch.device | None = None) -> Batch:
    """Pad rows to one length; return them as the model's arguments, and their labels.

    rows: tokens with their labels, as a part of `load_texts` has them, or token ids (T,), each its
    own label. device: None = the CPU.
    """
    ids = [r.cpu() if isinstance(r, Tensor) else r for r in rows]
    pairs = [({"input_ids": r}, r) if isinstance(r, Tensor) else pair(r) for r in ids]
    inputs, labels = stack(pairs)
    assert isinstance(inputs, dict)
    return {name: part.to(device) for name, part in inputs.items()}, labels.to(device)


def batches(rows: Sequence[Any], size: int, device: torch.device | None = None) -> list[Batch]:
    """Batch all rows, `size` at a time, in order."""
    bounds = [(first, min(first + size, len(rows))) for first in range(0, len(rows), size)]
    return [batch_of([rows[i] for i in range(first, last)], device) for first, last in bounds]


def inputs_of(
    rows: Sequence[Any], size: int, device: torch.device | None = None
) -> list[dict[str, Tensor]]:
    """Batch all rows as `batches` does, without labels."""
    return [inputs for inputs, _ in batches(rows, size, device)]


def first_rows(rows: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` rows, from the first."""
    return [rows[i] for i in range(min(count, len(rows)))]


def real_tokens(values: Tensor, batch: Batch) -> Tensor:
    """Select the tokens that are no padding.  values: (B, T, n) or (B T, n) -> (N, n)."""
    mask = batch[0]["attention_mask"].bool().flatten().to(values.device)
    return values.reshape(len(mask), -1)[mask]
