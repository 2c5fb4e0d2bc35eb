"""Samples with missing values, and their moments."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ...core.errors import DataError
from .shards import RowShards
from .states import Array


class Samples(NamedTuple):
    """Samples x (n, D), 0 where a value is missing.  observed: (n, D) bool, None = all."""

    x: Array
    observed: Array | None

    def take(self, rows: Any) -> Samples:
        """Return the samples of these rows."""
        return Samples(self.x[rows], None if self.observed is None else self.observed[rows])

    def dims(self) -> Array | int:
        """Return the number of observed values: (n,), or D where none is missing."""
        return self.x.shape[1] if self.observed is None else self.observed.sum(axis=1)


def block_of(x: Array, missing: bool) -> Samples:
    """Wrap data (n, D) as `Samples`.

    x: NaN = a missing value; missing: some values may be NaN, here or in another process.
    """
    return Samples(np.nan_to_num(x), ~np.isnan(x)) if missing else Samples(x, None)


def not_negative(x: Array, instead: str) -> Array:
    """Return the data if no value is below 0; refuse them otherwise.

    x: (n, D); instead: the model that the error names.  Raises: DataError.
    """
    if np.nanmin(x) < 0:
        got, want = f"values down to {np.nanmin(x):.3g}", "values from 0 on"
        fix = f"Add a constant, or use {instead}."
        # scikit-learn's checks look for exactly this text
        raise DataError("Negative values in data", got=got, want=want, fix=fix)
    return x


def moments(data: Samples, shards: RowShards) -> tuple[Array, float]:
    """Compute the mean of each feature (D,), and the root of their mean variance.

    shards: adds sums up over processes. Raises: DataError for a column without values, and for
      constant data.
    """
    observed = np.ones_like(data.x) if data.observed is None else data.observed
    count = shards.sum(observed.sum(axis=0).astype(np.float64))
    if len(bad := np.flatnonzero(count == 0)):
        got = f"no value in {len(bad)} columns, the first of them {bad[0]}"
        fix = "Leave such columns out."
        raise DataError("X", got=got, want="a value in each column", fix=fix)
    mean = shards.sum(data.x.sum(axis=0)) / count
    off = np.square((data.x - mean) * observed).sum(axis=0)
    spread = math.sqrt(float((shards.sum(off) / count).mean()))
    # a spread within rounding errors of the mean counts as constant
    if not spread > 1e-12 * (1 + float(np.abs(mean).max())):
        got, want = "samples that are all equal", "samples that differ"
        raise DataError("X", got=got, want=want, fix="Check how the samples were read.")
    return mean, spread


def count_of_causes(shares: Array) -> Array:
    """Compute P(g causes are on), g = 0 ... H, for independent causes.

    shares: (H,), P(cause h is on).  -> (H + 1,).
    """
    probability = np.zeros(len(shares) + 1)
    probability[0] = 1.0
    # add one cause at a time: it is on, which raises g by one, or off
    for share in shares:
        probability[1:] = probability[1:] * (1 - share) + probability[:-1] * share
        probability[0] *= 1 - share
    return probability
