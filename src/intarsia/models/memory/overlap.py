"""What codes keep of the similarity of items: the field's own measures, and a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import rankdata

from ...core.errors import DataError
from ...core.files import write_text

Array = np.ndarray
SIDE, GAP = 320, 8  # px of a map, and between both


def input_overlaps(x: Array) -> Array:
    """Shared active bits over the larger count of both.  (n, D) -> (n, n)."""
    bits = np.asarray(x, dtype=np.float64)
    counts = bits.sum(axis=1)
    return (bits @ bits.T) / np.maximum(counts[:, None], counts)


def code_overlaps(codes: Array) -> Array:
    """Share of modules with the same winner.  (n, Q) -> (n, n)."""
    same = [(codes == row).mean(axis=1) for row in codes]
    return np.stack(same)


def basis_set_size(codes: Array) -> int:
    """The number of distinct codes."""
    return len(np.unique(codes, axis=0))


def mean_overlap(x: Array) -> float:
    """The mean of `input_overlaps` of different rows."""
    return float(_pairs(input_overlaps(x)).mean())


def similarity(x: Array, codes: Array) -> float:
    """The correlation of code overlaps with input overlaps over pairs; 0 where one is constant."""
    return _correlation(_pairs(input_overlaps(x)), _pairs(code_overlaps(codes)))


def adherence(x: Array, codes: Array) -> float:
    """SISC adherence: the correlation of both orders; 0 where one is constant."""
    one, other = _pairs(input_overlaps(x)), _pairs(code_overlaps(codes))
    return _correlation(rankdata(one), rankdata(other))


def overlap_maps(
    X: Any, codes: Any, labels: Any = None, path: str | Path | None = None
) -> Image.Image:
    """Input overlaps beside code overlaps, dark = 0, as a grey picture.

    X: (n, D) of 0 and 1; codes: (n, Q); labels: (n,), by which items are sorted; path: a PNG.
    Raises: DataError for other numbers of items and codes.
    """
    x, codes = np.asarray(X), np.asarray(codes)
    if len(x) != len(codes):
        got, want = f"{len(codes)} codes of {len(x)} items", "one of each"
        raise DataError("codes", got=got, want=want, fix="Pass mac.code(X).")
    order = np.arange(len(x)) if labels is None else np.argsort(labels, kind="stable")
    scale = max(1, SIDE // len(x))
    maps = [m[np.ix_(order, order)] for m in (input_overlaps(x), code_overlaps(codes))]
    grey = [(255 * m).round().astype(np.uint8).repeat(scale, 0).repeat(scale, 1) for m in maps]
    gap = np.full((len(grey[0]), GAP), 128, np.uint8)
    picture = Image.fromarray(np.concatenate([grey[0], gap, grey[1]], axis=1))
    if path is not None:
        raw = io.BytesIO()
        picture.save(raw, "PNG")
        write_text(path, raw.getvalue())
    return picture


def _pairs(table: Array) -> Array:
    return table[np.triu_indices(len(table), 1)]


def _correlation(one: Array, other: Array) -> float:
    if len(one) < 2 or not one.std() or not other.std():
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
