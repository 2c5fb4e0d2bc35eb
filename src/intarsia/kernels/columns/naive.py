"""The definition, for tests."""

from __future__ import annotations

import torch
from torch import Tensor


def columns_linear(x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor) -> Tensor:
    """Compute x W^T from the kept weights of W alone.

    x: (batch, in); values, columns: (kept,), each kept weight and its column in W, row by row;
      offsets: (out + 1,), where each row of W begins in `values`.  -> (batch, out).
    """
    # The row of each kept weight, from where rows begin.
    counts = offsets.long().diff()
    row = torch.arange(len(counts)).repeat_interleave(counts)
    y = x.new_zeros(len(x), len(counts))
    return y.index_add(1, row, x[:, columns.long()] * values.to(x.dtype))
