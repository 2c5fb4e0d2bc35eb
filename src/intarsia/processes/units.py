"""Weights of experts in parts: some of the experts, or some hidden units of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class UnitAxes:
    """Where the h hidden units of an expert stand in a weight (E, ...).

    axis: along which; runs: of all of them, one after the other (2: gates, then the values that
    they gate); each: numbers of a unit side by side (2: a gate and its value).
    """

    axis: int
    runs: int = 1
    each: int = 1

    def part(self, weight: Tensor, part: int, slices: int) -> Tensor:
        """The part-th of `slices` equal parts, a view.  (E, ..., runs, h / slices, each, ...)."""
        apart = self.apart(weight)
        count = apart.shape[self.axis + 1] // slices
        return apart.narrow(self.axis + 1, part * count, count)

    def apart(self, weight: Tensor) -> Tensor:
        """(E, ..., runs h each, ...) -> (E, ..., runs, h, each, ...)."""
        return weight.unflatten(self.axis, (self.runs, -1, self.each))

    def together(self, apart: Tensor) -> Tensor:
        """The inverse of `apart`."""
        return apart.flatten(self.axis, self.axis + 2)


def own_part(
    units: UnitAxes | None, weight: Tensor, index: Tensor, part: int, slices: int
) -> Tensor:
    """Of a weight of all experts, what stands in these, in the part-th slice.  (E, ...)."""
    value = weight[index]
    if units is not None and slices > 1:
        return units.together(units.part(value, part, slices))
    return torch.zeros_like(value) if part else value


def put_part(
    units: UnitAxes | None,
    weight: Tensor | None,
    value: Tensor,
    experts: int,
    index: Tensor,
    part: int,
    slices: int,
) -> Tensor:
    """The inverse of `own_part`, one part after another.  Returns the whole so far."""
    units = units if slices > 1 else None
    if weight is None:
        shape = [experts, *value.shape[1:]]
        if units is not None:
            shape[units.axis] *= slices
        weight = value.new_zeros(shape)
    if units is not None:
        rows = units.part(weight, part, slices)
        rows[index] = units.apart(value)
    elif not part:
        weight[index] = value
    return weight


def put_rows(weight: nn.Parameter, rows: Tensor) -> None:
    """Give a weight these rows, of another number than it had; its gradient is gone before."""
    # autograd remembers a weight's old shape until its dtype changes
    dtype = torch.float16 if weight.dtype != torch.float16 else torch.float32
    weight.data = torch.empty(0, dtype=dtype, device=weight.device)
    weight.data = rows
