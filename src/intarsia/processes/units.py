"""Weights of experts in parts: some of the experts, or some hidden units of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class UnitAxes:
    """The place of an expert's h hidden units in a weight (E, ...).

    axis: along which; runs: of all of them, one after the other (2: gates, then the values that
    they gate); each: numbers of a unit side by side (2: a gate and its value).
    """

    axis: int
    runs: int = 1
    each: int = 1

    def part(self, weight: Tensor, part: int, slices: int) -> Tensor:
        """Return one of `slices` equal slices of the hidden units, a view of the weight.

        weight: (E, ...), of E experts; part: which slice. Returns it with the units' axis split,
          (E, ..., runs, h / slices, each, ...).
        """
        apart = self.apart(weight)
        count = apart.shape[self.axis + 1] // slices
        return apart.narrow(self.axis + 1, part * count, count)

    def apart(self, weight: Tensor) -> Tensor:
        """Split the units' axis.  (E, ..., runs h each, ...) -> (E, ..., runs, h, each, ...)."""
        return weight.unflatten(self.axis, (self.runs, -1, self.each))

    def together(self, apart: Tensor) -> Tensor:
        """Flatten the axis of the units again: the inverse of `apart`."""
        return apart.flatten(self.axis, self.axis + 2)


def own_part(
    units: UnitAxes | None, weight: Tensor, index: Tensor, part: int, slices: int
) -> Tensor:
    """Return the part of a weight that one process holds: some experts, one slice of each.

    weight: (E, ...), of all experts; index: (n,), the numbers of the experts; slices: into how many
      equal slices their hidden units are cut, 1 = not; part: number of the slice; units: the axis
      of the hidden units, None = the weight has none, such as a bias of the outputs. Such a weight
      is returned whole for slice 0, and as zeros for the others, since outputs of slices are added
      up. Returns (n, ...).
    """
    value = weight[index]
    if units is not None and slices > 1:
        return units.together(units.part(value, part, slices))
    # a weight without hidden units, as a bias after them, counts in the first slice only
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
    """Write what `own_part` took from a weight back into it; return the weight, (E, ...).

    units: the axis of the hidden units, None = the weight has none; weight: (E, ...) as earlier
      calls filled it, None at the first; value: what `own_part` returned, (n, ...); experts: E;
      index: (n,), the numbers of its experts; part: the number of its slice, of `slices` equal
      slices of the hidden units.
    """
    units = units if slices > 1 else None
    if weight is None:
        # room for all experts, and for all slices of their units
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
    """Set a parameter's data to rows of another number than it had.

    rows: (n, ...). The parameter's gradient must be None: it would have the old shape.
    """
    # autograd remembers a weight's old shape until its dtype changes
    dtype = torch.float16 if weight.dtype != torch.float16 else torch.float32
    weight.data = torch.empty(0, dtype=dtype, device=weight.device)
    weight.data = rows
