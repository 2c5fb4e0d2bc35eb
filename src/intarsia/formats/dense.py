"""The whole weight in bfloat16, the baseline of sparse formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Format
from ..core.errors import ShapeError
from ..kernels import dense as kernels
from .rows import kept_of

MOST_ROWS = 16  # of x; with more, torch's product takes less time


@dataclass(frozen=True)
class Dense(Format):
    """Weights rounded to bfloat16, two bytes each; zeros are stored like others.

    Stored: values, of the weight's shape. Decoded to bfloat16. Products of up to 16 rows of x on
    the CPU, without gradients, are summed in float32 in compiled code, others are torch's, in the
    type of x.

    Raises: ShapeError for another shape. The baseline of sparse formats; for a model's file use
    `model.bfloat16()`.
    """

    def encode(
        self, weight: Tensor, keep: Tensor | None = None, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Encode a weight as "values" in bfloat16, of the weight's shape."""
        masked = weight if keep is None else weight.masked_fill(~kept_of(weight, keep), 0)
        # a copy, also of a weight that is bfloat16 already
        return {"values": masked.detach().to(torch.bfloat16, copy=True).contiguous()}

    def decode(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return a copy of the stored weight, in bfloat16.  Raises: ShapeError for others."""
        values = stored["values"]
        if values.shape != tuple(shape):
            fix = "Decode with the shape of the encoding."
            raise ShapeError("values", got=tuple(values.shape), want=tuple(shape), fix=fix)
        return values.clone()

    def matmul(self, x: Tensor, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return x W^T: up to MOST_ROWS rows on the CPU, without gradients, sum in float32."""
        values, few_rows = stored["values"], x.shape[:-1].numel() <= MOST_ROWS
        learned = torch.is_grad_enabled() and x.requires_grad
        if few_rows and not learned and values.shape == tuple(shape) and kernels.runs(x, values):
            return kernels.linear(x, values)
        return super().matmul(x, stored, shape)

    def bound(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Any:
        """Return a prepared call x -> x W^T for few rows of x, None without a native kernel."""
        return kernels.bound(stored["values"], MOST_ROWS)
