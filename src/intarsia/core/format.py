"""Stored how? A tensor as the tensors that are written in its place."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError

Stored = Mapping[str, Tensor]


class NoRowsApart(ConfigError, NotImplementedError):
    """Error of a format that stores no rows apart, and is asked for some."""


class Format(abc.ABC):
    """A way to store a weight.

    decode(encode(w), w.shape) is what the format makes of w, and decoding keeps it: codes are
    stored, never made again from a decoded tensor.
    """

    @property
    def needs(self) -> frozenset[str]:
        """The statistics of a layer's inputs by which codes are chosen: "hessian", none here."""
        return frozenset()

    @property
    def exact(self) -> bool:
        """True if decoding gives the very weight that was encoded."""
        return False

    @abc.abstractmethod
    def encode(
        self, weight: Tensor, keep: Tensor | None = None, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the tensors that are written for a weight, by name, indices and scales included.

        keep: bool, of the weight's shape, True = stays, all others become 0; None = the format's
        own choice. moments: second moments of the layer's inputs, (in,) or (in, in), for formats
        that choose codes by the error of the output; unused by others.
        Raises: ConfigError for a `keep` where the format has no zeros.
        """

    @abc.abstractmethod
    def decode(self, stored: Stored, shape: Sequence[int]) -> Tensor:
        """Return the tensor of a given shape from what `encode` returned.

        stored: the tensors by name; shape: of the weight.
        Raises: ShapeError where they do not fit.
        """

    def matmul(self, x: Tensor, stored: Stored, shape: Sequence[int]) -> Tensor:
        """Compute x W^T for the stored weight W (out, in), by decoding it.

        x: (..., in) -> (..., out). stored: what `encode` returned; shape: of W. A format with a
        kernel of its own overrides it.
        """
        # slow and obvious: the reference for every kernel
        return x @ self.decode(stored, shape).to(x).T

    def bound(self, stored: Stored, shape: Sequence[int]) -> Any:
        """Return `matmul` as a prepared call for few rows of x; None without a native kernel.

        stored: what `encode` returned, which must stay in its place in memory; shape: of the
        weight. The call is a `kernels.native.Bound`.
        """
        return None

    @property
    def row_group(self) -> int | None:
        """Rows that are stored together: `part` begins at a multiple of it; None = no parts."""
        return None

    def part(self, stored: Stored, first: int, count: int) -> dict[str, Tensor]:
        """Return the stored tensors of some rows of a matrix, as views where memory allows it.

        first, count: multiples of `row_group`. Raises: NoRowsApart for a format without one.
        """
        want, fix = "one that stores rows apart", "Use BlockInt or Ternary, or decode it whole."
        raise NoRowsApart("format", got=self, want=want, fix=fix)

    def joined(self, parts: Sequence[Stored]) -> dict[str, Tensor]:
        """Return the stored tensors of matrices one above the other, the inverse of `part`."""
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def nbytes(stored: Stored) -> int:
    """Count the bytes of all that is stored."""
    return sum(t.numel() * t.element_size() for t in stored.values())
