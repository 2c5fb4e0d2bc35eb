"""Stored how? A tensor as the tensors that are written in its place."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

Stored = Mapping[str, Tensor]


class Format(abc.ABC):
    """A way to store a weight.

    decode(encode(w), w.shape) is what the format makes of w, and decoding keeps it: codes are
    stored, never made anew from a decoded tensor.
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
        """Return the tensors to write, by name, indices and metadata included.

        keep: bool, of the weight's shape, the weights that are kept, all others being 0; None = the
        format's own choice. moments: second moments of the layer's inputs, (in,) or (in, in), for
        formats that choose codes by the error of the output; others do not read them.
        Raises: ConfigError for a `keep` where the format has no zeros.
        """

    @abc.abstractmethod
    def decode(self, stored: Stored, shape: Sequence[int]) -> Tensor:
        """Return the tensor of that shape that `stored` stands for.

        Raises: ShapeError where they do not fit.
        """

    def matmul(self, x: Tensor, stored: Stored, shape: Sequence[int]) -> Tensor:
        """Compute x W^T, W (out, in) the weight that is stored; decode it first.

        x: (..., in) -> (..., out). A format with a kernel of its own overrides it.
        """
        return x @ self.decode(stored, shape).to(x).T

    def bound(self, stored: Stored, shape: Sequence[int]) -> Any:
        """Return `matmul` for a few rows of x with the least overhead, or None without a kernel.

        It is a `kernels.native.Bound`: the stored tensors are looked at now, and must stay there.
        """
        return None


def nbytes(stored: Stored) -> int:
    """Count the bytes of all that is stored."""
    return sum(t.numel() * t.element_size() for t in stored.values())
