"""Weights in large pages: a token needs hundreds of them, but tens of thousands of small ones."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterable

from torch import Tensor

PAGE = 2**21  # bytes of a large page on x86 and of most kernels on ARM
COLLAPSE = 25  # MADV_COLLAPSE of <linux/mman.h>, since Linux 6.1
SMALLEST = 2**16  # bytes of a tensor that is worth a call


def use_large_pages(tensors: Iterable[Tensor]) -> None:
    """Ask Linux to move the memory of tensors into pages of 2 MiB, where they are.

    Every address and value stays; neighbours in the same 2 MiB move with them. A system without
    large pages, or one that has none left, refuses, and nothing changes. Where they are large
    already it takes some microseconds.
    tensors: on the CPU, contiguous.
    """
    for tensor in tensors:
        if tensor.nbytes >= SMALLEST:
            first = tensor.data_ptr() // PAGE
            last = (tensor.data_ptr() + tensor.nbytes - 1) // PAGE
            # one call for all between the ends, which may lie next to memory that is not there
            for begin, end in ((first, first), (first + 1, last - 1), (last, last)):
                if begin <= end:
                    advise(begin * PAGE, (end - begin + 1) * PAGE, COLLAPSE)


def advise(first: int, size: int, advice: int) -> bool:
    """Tell Linux what to do with the pages of some memory; return True where it does it.

    first: address, a multiple of the page's size; advice: a number of <linux/mman.h>.
    """
    call = _madvise()
    return call is not None and call(first, size, advice) == 0


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """Return the system's call, None where there is none."""
    with contextlib.suppress(AttributeError, OSError):
        if sys.platform == "linux":
            call = ctypes.CDLL(None).madvise
            call.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
            return call
    return None
