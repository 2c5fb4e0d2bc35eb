"""A weight as rows, and which of its entries a format of zeros keeps."""

from __future__ import annotations

from torch import Tensor

from ..core.errors import ShapeError


def matrix(weight: Tensor) -> Tensor:
    """(out, the rest); a vector is one row."""
    return weight.flatten(1) if weight.dim() > 1 else weight.reshape(1, -1)


def kept_of(weight: Tensor, keep: Tensor | None) -> Tensor:
    """`keep`; None = what is not 0.  Raises: ShapeError for a mask of another shape."""
    keep = weight != 0 if keep is None else keep
    if keep.shape != weight.shape:
        want = tuple(weight.shape)
        raise ShapeError("keep", got=tuple(keep.shape), want=want, fix="Mask each weight.")
    return keep
