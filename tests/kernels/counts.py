"""Numbers of threads to repeat a computation with."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def on_threads(*counts: int) -> Iterator[int]:
    """Yield each count while torch has as many threads, and give it back those it had."""
    before = torch.get_num_threads()
    try:
        for count in counts:
            torch.set_num_threads(count)
            yield count
    finally:
        torch.set_num_threads(before)
