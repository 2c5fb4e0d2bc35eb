"""The definition, for tests."""

from __future__ import annotations

import torch
from torch import Tensor


def columns_linear(x: Tensor, values: Tensor, columns: Tensor, offsets: Tensor) -> Tensor:
    """Return y_br = sum over row r's kept weights of x_b,column value.  (b, in) -> (b, out).

    values, columns: (kept,), row by row; offsets: (out + 1,), where each row begins.
    """
    counts = offsets.long().diff()
    row = torch.arange(len(counts)).repeat_interleave(counts)
    y = x.new_zeros(len(x), len(counts))
    return y.index_add(1, row, x[:, columns.long()] * values.to(x.dtype))
