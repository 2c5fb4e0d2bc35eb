"""Measures of how codes preserve the similarity of items, and a picture of both."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import rankdata

from ...core.errors import DataError
from ...core.files import write_bytes

Array = np.ndarray
SIDE, GAP = 320, 8  # pixels of a map, and between the two


def input_overlaps(x: Array) -> Array:
    """Compute the overlap of each two items: common active bits / the larger of their two counts.

    x: (n, D) bits.  -> (n, n).
    """
    # float64 products are exact for counts, and faster than integers
    bits = np.asarray(x, dtype=np.float64)
    counts = bits.sum(axis=1)
    return (bits @ bits.T) / np.maximum(counts[:, None], counts)


def code_overlaps(codes: Array) -> Array:
    """Return the share of modules with the same winner, by pairs.  (n, Q) -> (n, n)."""
    rows = [(codes == row).mean(axis=1) for row in codes]
    return np.stack(rows)


def basis_set_size(codes: Array) -> int:
    """Return the number of distinct codes.  codes: (n, Q)."""
    return len(np.unique(codes, axis=0))


def mean_overlap(x: Array) -> float:
    """Return the mean of `input_overlaps` over pairs of different rows.  x: (n, D)."""
    return float(_pairs(input_overlaps(x)).mean())


def similarity(x: Array, codes: Array) -> float:
    """Correlate code overlaps with input overlaps over pairs; 0 where one is constant."""
    return _correlation(_pairs(input_overlaps(x)), _pairs(code_overlaps(codes)))


def adherence(x: Array, codes: Array) -> float:
    """Compute the SISC adherence, the rank correlation of both overlaps; 0 if one is constant.

    SISC: similar inputs have similar codes. x: (n, D) bits; codes: (n, Q), winners.
    """
    of_inputs, of_codes = _pairs(input_overlaps(x)), _pairs(code_overlaps(codes))
    return _correlation(rankdata(of_inputs), rankdata(of_codes))


def overlap_maps(
    X: Any, codes: Any, labels: Any = None, path: str | Path | None = None
) -> Image.Image:
    """Draw overlaps of inputs and of codes side by side as a grey picture, dark = 0.

    X: (n, D) of 0 and 1; codes: (n, Q); labels: (n,), by which items are sorted, None = not; path:
      a PNG to write, None = none.
    Raises: DataError for other numbers of items and codes.
    """
    x, codes = np.asarray(X), np.asarray(codes)
    if len(x) != len(codes):
        got, want = f"{len(codes)} codes of {len(x)} items", "one of each"
        raise DataError("codes", got=got, want=want, fix="Pass mac.code(X).")
    # items of one class side by side, so that classes are blocks on the diagonal
    order = np.arange(len(x)) if labels is None else np.argsort(labels, kind="stable")
    scale = max(1, SIDE // len(x))
    maps = [m[np.ix_(order, order)] for m in (input_overlaps(x), code_overlaps(codes))]
    # enlarge by whole factors, so that a pair has a square of pixels
    grey = [(255 * m).round().astype(np.uint8).repeat(scale, 0).repeat(scale, 1) for m in maps]
    gap = np.full((len(grey[0]), GAP), 128, np.uint8)
    picture = Image.fromarray(np.concatenate([grey[0], gap, grey[1]], axis=1))
    if path is not None:
        raw = io.BytesIO()
        picture.save(raw, "PNG")
        write_bytes(path, raw.getvalue())
    return picture


def _pairs(table: Array) -> Array:
    """Return the entries above the diagonal, one for each pair.  (n, n) -> (n (n - 1) / 2,)."""
    return table[np.triu_indices(len(table), 1)]


def _correlation(first: Array, second: Array) -> float:
    """Compute Pearson's correlation of two vectors, 0 where it is undefined."""
    if len(first) < 2 or not first.std() or not second.std():
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])
