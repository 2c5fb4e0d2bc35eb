"""A kernel with all that does not change from call to call: a few microseconds less each time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .faults import refuse

HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """x -> x W^T of a stored weight, outside torch's dispatcher: no gradient, no tracing.

    call: (address of x, of y, rows, threads) -> fault, of x and y in float32.  held: the tensors
    that it has addresses of.  sides: (out, in).  most: rows of x that it is faster for.
    """

    call: Callable[[int, int, int, int], int]
    held: tuple[Tensor, ...]
    sides: tuple[int, int]
    most: int

    def takes(self, x: Tensor) -> bool:
        """Whether this x may be given."""
        return (
            type(x) is Tensor
            and (x.dtype is torch.float32 or x.dtype in HALVES)
            and x.shape[-1] == self.sides[1]
            and 0 < x.numel() <= self.most * self.sides[1]
            and not (x.requires_grad and torch.is_grad_enabled())
            and x.is_cpu
            and not torch.compiler.is_compiling()
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in x's type.  Raises: ShapeError for a damaged weight."""
        given = x.float().contiguous()
        y = given.new_empty((*x.shape[:-1], self.sides[0]))
        rows = x.numel() // self.sides[1]
        if fault := self.call(given.data_ptr(), y.data_ptr(), rows, torch.get_num_threads()):
            refuse(fault)
        return y if x.dtype is torch.float32 else y.to(x.dtype)


def padded_rows(x: int, rows: int, width: int, wide: int) -> Tensor:
    """Float32 rows at an address, (rows, width), with zeros behind: (rows, wide)."""
    given = torch.zeros(rows, wide)
    to = given.data_ptr()
    for row in range(rows):
        ctypes.memmove(to + 4 * wide * row, x + 4 * width * row, 4 * width)
    return given
