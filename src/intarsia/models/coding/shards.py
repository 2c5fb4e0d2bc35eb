"""Rows that are spread over processes, as the estimators see them."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class RowShards(Protocol):
    """The rows of one process among those of `count`; `intarsia.train.DataShards` is one."""

    count: int

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum of all processes' arrays."""
        ...

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all processes, in their order."""
        ...


class OneProcess:
    """One process, whose rows are all there are."""

    count = 1

    def sum(self, array: np.ndarray) -> np.ndarray:
        return array

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return rows


ALONE: RowShards = OneProcess()
