"""The definition, for tests."""

from __future__ import annotations

import torch
from torch import Tensor


def columns_linear(x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor) -> Tensor:
    """Compute y_br, the sum of x_b,column value over the kept weights of row r.

    x: (b, in); values, columns: (kept,), each kept weight and its column, row by row; offsets: (out
      + 1,), where each row begins.  -> (b, out).
    """
    # The row of each kept weight, from where rows begin.
    counts = offsets.long().diff()
    row = torch.arange(len(counts)).repeat_interleave(counts)
    y = x.new_zeros(len(x), len(counts))
    return y.index_add(1, row, x[:, columns.long()] * values.to(x.dtype))
