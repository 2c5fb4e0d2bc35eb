"""A weight as a matrix of rows, and the mask of the entries that a sparse format keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.errors import DataError, ShapeError


def matrix(weight: Tensor) -> Tensor:
    """Flatten a weight to (out, the rest); a vector is one row."""
    return weight.flatten(1) if weight.dim() > 1 else weight.reshape(1, -1)


def sides(shape: Sequence[int]) -> tuple[int, int]:
    """Return the rows and the width that `matrix` gives a weight of this shape."""
    size = torch.Size(shape)
    return (size[0], size[1:].numel()) if len(size) > 1 else (1, size.numel())


def finite(weight: Tensor) -> Tensor:
    """Return a weight's values in float32.  Raises: DataError for NaN or infinity among them."""
    values = weight.detach().float()
    if not bool(torch.isfinite(values).all()):
        got = f"{int((~torch.isfinite(values)).sum())} not finite"
        fix = "Look at how it was trained."
        raise DataError("weight", got=got, want="finite numbers", fix=fix)
    return values


def kept_of(weight: Tensor, keep: Tensor | None) -> Tensor:
    """Return a mask of the weights to store: `keep`, or if it is None the weights that are not 0.

    Raises: ShapeError for a mask of another shape.
    """
    keep = weight != 0 if keep is None else keep
    if keep.shape != weight.shape:
        want = tuple(weight.shape)
        raise ShapeError("keep", got=tuple(keep.shape), want=want, fix="Mask each weight.")
    return keep
