"""The roofline of this machine: bytes read a second, and the peak of matrix products."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .loading import load
from .pages import use_large_pages

MEBIBYTES = 256  # more than any cache
SIDE = 1024


@dataclass(frozen=True)
class Floor:
    """The roofline: read, bytes/s from memory; matmul, FLOP/s by dtype; threads, of torch."""

    read: float
    matmul: Mapping[str, float]
    threads: int


def cpu_seconds(call: Callable[[], object], repeats: int = 7) -> list[float]:
    """Measure a call several times; return the seconds of each, after one that is not counted.

    call: a function without arguments. CPU time on one thread, because others may use the machine,
      too; wall time on several, where CPU times would add up.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    call()
    seconds: list[float] = []
    for _ in range(repeats):
        started = clock()
        call()
        seconds.append(clock() - started)
    return seconds


def read_bandwidth(mebibytes: int = MEBIBYTES, repeats: int = 7) -> float:
    """Measure the bytes/s at which memory is read, the median repeat."""
    numbers = torch.ones(mebibytes * 2**18)
    use_large_pages([numbers])  # as formats' weights are
    library, threads = load(), torch.get_num_threads()
    if library is None:  # torch adds them up at about the same speed
        seconds = cpu_seconds(numbers.sum, repeats)
    else:
        read = library.intarsia_read_threads
        read.restype = ctypes.c_float
        read.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int)
        address, count = numbers.data_ptr(), numbers.numel()
        seconds = cpu_seconds(lambda: read(address, count, threads), repeats)
    return numbers.nbytes / statistics.median(seconds)


def matmul_peak(dtype: torch.dtype, side: int = SIDE, repeats: int = 5) -> float:
    """Return the FLOP/s of torch's product of two (side, side) matrices, the best repeat."""
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    return 2 * side**3 / min(cpu_seconds(lambda: a @ b, repeats))


def measure() -> Floor:
    """Measure the roofline on torch's number of threads, in about half a second."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    peaks = {name: matmul_peak(dtype) for name, dtype in dtypes.items()}
    return Floor(read_bandwidth(), peaks, torch.get_num_threads())
