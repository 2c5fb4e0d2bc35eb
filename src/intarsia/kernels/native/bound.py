"""The product of a fixed weight, as numbers that native/products.c reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from .faults import refuse
from .loading import function
from .pages import use_large_pages

HALVES = (torch.bfloat16, torch.float16)
PRODUCTS = ("dense", "bitmask", "gqsa", "ternary", "blockint")  # of products.c
MANY = 2**31  # rows of x: there is no number from which decoding would take less time
TYPES = (c_void_p, c_void_p, c_void_p, c_int64, c_int)


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """x -> x W^T of a stored weight, outside torch's dispatcher: no gradient, no tracing.

    numbers: (n,) int64, the numbers that `intarsia_product` reads.  tensors: the tensors at the
    addresses among them.  sides: (out, in).  max_rows: rows of x up to which this is faster than
    decoding.
    """

    call: Callable[..., int]
    numbers: Tensor
    tensors: tuple[Tensor, ...]
    sides: tuple[int, int]
    max_rows: int

    @classmethod
    def of(
        cls,
        kind: str,
        sides: tuple[int, int],
        settings: Sequence[int],
        tensors: Sequence[Tensor | None],
        max_rows: int,
    ) -> Bound | None:
        """Return the product with a stored weight; None without a kernel for its tensors.

        kind: the format's name, one of PRODUCTS; sides: (out, in) of the weight; settings, tensors:
          numbers and tensors of the format, in the order in which products.c reads them; max_rows:
          rows of x up to which the kernel is faster than decoding the weight.
        """
        present = tuple(t for t in tensors if t is not None)
        call = function("intarsia_product", *TYPES)
        if call is None or not all(t.is_contiguous() and t.device.type == "cpu" for t in present):
            return None
        use_large_pages(present)
        places = [0 if t is None else t.data_ptr() for t in tensors]
        numbers = torch.tensor([PRODUCTS.index(kind), *sides, *settings, *places])
        return cls(call, numbers, present, sides, max_rows)

    def takes(self, x: Tensor) -> bool:
        """Return True if the kernel can multiply this x (..., in); otherwise decode the weight."""
        return (
            type(x) is Tensor
            and (x.dtype is torch.float32 or x.dtype in HALVES)
            and x.shape[-1] == self.sides[1]
            and 0 < x.numel() <= self.max_rows * self.sides[1]
            and not (x.requires_grad and torch.is_grad_enabled())
            and x.is_cpu
            and not torch.compiler.is_compiling()
        )

    def point_to(self, *tensors: Tensor) -> None:
        """Read other tensors, as `of` takes them, from now on; they must stay in memory."""
        places = [tensor.data_ptr() for tensor in tensors]
        # the addresses are the last numbers
        self.numbers[-len(places) :] = torch.tensor(places)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute x W^T in x's dtype, (..., in) -> (..., out); ShapeError for a damaged weight."""
        rows = x.float().contiguous()
        y = rows.new_empty((*x.shape[:-1], self.sides[0]))
        count, threads = x.numel() // self.sides[1], torch.get_num_threads()
        refuse(self.call(self.numbers.data_ptr(), rows.data_ptr(), y.data_ptr(), count, threads))
        return y if x.dtype is torch.float32 else y.to(x.dtype)
