"""Protocol for data with rows that are distributed over processes."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class RowShards(Protocol):
    """Shard of rows in one of `count` processes; `intarsia.train.DataShards` implements it."""

    count: int

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Return the sum of all processes' arrays."""
        ...

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of all processes, in the order of processes."""
        ...


class OneProcess:
    """Shard of a single process, which has all rows."""

    count = 1

    def sum(self, array: np.ndarray) -> np.ndarray:
        return array

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return rows


ALONE: RowShards = OneProcess()
