"""Samples with missing values, and what is known of them before a model is."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ...core.errors import DataError
from .shards import RowShards
from .states import Array


class Samples(NamedTuple):
    """Some samples: x (n, D), 0 where a value is missing; seen: (n, D), None = all are there."""

    x: Array
    seen: Array | None

    def take(self, rows: Any) -> Samples:
        return Samples(self.x[rows], None if self.seen is None else self.seen[rows])

    def dims(self) -> Array | int:
        """Values of each sample that are there."""
        return self.x.shape[1] if self.seen is None else self.seen.sum(axis=1)


def block_of(x: Array, missing: bool) -> Samples:
    return Samples(np.nan_to_num(x), ~np.isnan(x)) if missing else Samples(x, None)


def not_negative(x: Array, instead: str) -> Array:
    """The data, if none of them is below 0.  Raises: DataError, with the model to use instead."""
    if np.nanmin(x) < 0:
        got, want = f"values down to {np.nanmin(x):.3g}", "values from 0 on"
        fix = f"Add a constant, or use {instead}."
        # scikit-learn's own words, which its checks look for
        raise DataError("Negative values in data", got=got, want=want, fix=fix)
    return x


def moments(data: Samples, shards: RowShards) -> tuple[Array, float]:
    """The mean of each feature, and the root of their mean variance.

    Raises: DataError for a column without values, and where all is constant.
    """
    seen = np.ones_like(data.x) if data.seen is None else data.seen
    count = shards.sum(seen.sum(axis=0).astype(np.float64))
    if len(bad := np.flatnonzero(count == 0)):
        got = f"no value in {len(bad)} columns, the first of them {bad[0]}"
        fix = "Leave such columns out."
        raise DataError("X", got=got, want="a value in each column", fix=fix)
    mean = shards.sum(data.x.sum(axis=0)) / count
    off = np.square((data.x - mean) * seen).sum(axis=0)
    spread = math.sqrt(float((shards.sum(off) / count).mean()))
    if not spread > 1e-12 * (1 + float(np.abs(mean).max())):
        got, want = "samples that are all equal", "samples that differ"
        raise DataError("X", got=got, want=want, fix="Check how the samples were read.")
    return mean, spread


def count_of_causes(shares: Array) -> Array:
    """P(g causes are on) for g = 0 ... H, of independent causes.  (H,) -> (H + 1,)."""
    found = np.zeros(len(shares) + 1)
    found[0] = 1.0
    for share in shares:
        found[1:] = found[1:] * (1 - share) + found[:-1] * share
        found[0] *= 1 - share
    return found
