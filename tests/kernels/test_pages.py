"""Weights in large pages keep their places and values."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import pytest
import torch

from intarsia.kernels.native.pages import PAGE, SMALLEST, use_large_pages


def large_bytes(address: int) -> int:
    """Return the bytes in large pages of the mapping that an address is in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return 1024 * int(line.split()[1])
    return 0


@pytest.mark.parametrize("size", [0, 1, SMALLEST, 3 * PAGE + 5])
def test_values_and_places_stay(size: int) -> None:
    weight = torch.arange(size, dtype=torch.uint8)
    place, before = weight.data_ptr(), weight.clone()
    use_large_pages([weight])
    assert weight.data_ptr() == place and torch.equal(weight, before)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_memory_is_in_large_pages_where_the_system_has_them() -> None:
    memory = mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    weight = torch.frombuffer(memory, dtype=torch.uint8)
    weight.fill_(3)
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[madvise]" not in setting.read_text():
        pytest.skip("this system gives large pages to all or to none")
    before = large_bytes(weight.data_ptr())
    use_large_pages([weight])
    if not large_bytes(weight.data_ptr()):
        pytest.skip("no large page is left, or Linux is older than 6.1")
    assert large_bytes(weight.data_ptr()) - before >= 6 * PAGE
    assert bool((weight == 3).all())
