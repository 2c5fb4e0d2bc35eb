"""Stored how? A tensor as the tensors that are written in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor


class Format(Protocol):
    """A way to store a tensor.

    decode(encode(w), w.shape) is what the format makes of w, and decode keeps it: codes are stored,
    never made anew from a decoded tensor.
    """

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        """What is written: tensors by name, indices and metadata included."""
        ...

    def decode(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """The tensor of that shape that `stored` stands for."""
        ...

    def nbytes(self, shape: Sequence[int]) -> int:
        """The bytes of all that `encode` returns for a tensor of that shape."""
        ...
