"""A few bits for each weight, in groups with a scale each, as in int4 and int8 files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Format
from ..core.errors import ConfigError
from ..core.schema import check, setting
from .bits import pack_bits, unpack_bits


@dataclass(frozen=True)
class Absmax(Format):
    """w = s round(W / s), s = max |W| / (2^(bits-1) - 1) of each group along the last axis.

    A last group may be shorter. Codes are stored as code + 2^(b-1), b bits each, one after the
    other, and scales in float16.

    Raises: ConfigError on a setting that cannot be, or a mask; ShapeError where bytes do not fit.
    Not for activations, and at 2 or 3 bits worse than formats that choose their levels.
    """

    bits: int = setting(4, "The bits b of a code.", least=2, most=8, fix="Try 4.")
    group: int = setting(64, "The number of weights that share a scale.", least=1, fix="Try 64.")

    def __post_init__(self) -> None:
        check(self)

    def encode(
        self, weight: Tensor, keep: Tensor | None = None, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Encode a weight in groups: a scale s for each, and round(w / s) in b bits a weight.

        weight: any shape, of n entries, read as R rows along the last axis, each cut into G groups.
        keep: must be None: this format stores no mask. moments: unused; other formats need it.
        Returns "scales" (R, G) float16, s = max |w| / (2^(b-1) - 1) of the group; and "codes"
        (ceil(n b / 8),) uint8: round(w / s) + 2^(b-1), which is never negative, in b bits each.
        Raises: ConfigError for a mask.
        """
        if keep is not None:
            fix = "Use Bitmask, or encode the weight without a mask."
            raise ConfigError("keep", got="a mask", want="None", fix=fix)
        rows = self._groups(weight.detach().float())  # (R, G, g)
        largest = 2 ** (self.bits - 1) - 1
        scales = (rows.abs().amax(2) / largest).clamp(max=65504).half()  # as stored: codes fit it
        # a group of tiny weights gets the smallest scale, not 0
        scales = torch.where((scales == 0) & (rows.abs().amax(2) > 0), _smallest_scale(), scales)
        divisor = torch.where(scales == 0, 1.0, scales.float())
        # codes are stored from 0, so that the middle one is 2^(b-1)
        codes = (rows / divisor[..., None]).round().clamp(-largest, largest).long() + largest + 1
        flat = codes.flatten(1)[:, : self._width(weight.shape)].flatten()
        return {"codes": pack_bits(flat, self.bits), "scales": scales}

    def decode(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return the encoded weight in float32: code - 2^(b-1), times its group's scale."""
        width = self._width(shape)
        flat = unpack_bits(stored["codes"], self.bits, math.prod(shape))
        codes = flat.view(math.prod(shape[:-1]), width)
        codes = self._groups((codes - 2 ** (self.bits - 1)).float())
        values = codes * stored["scales"].float()[..., None]
        return values.flatten(1)[:, :width].reshape(tuple(shape))

    def size(self, shape: Sequence[int]) -> int:
        """Return the bytes that a weight of this shape takes; they do not depend on its values."""
        rows = math.prod(shape) // max(1, self._width(shape))
        # a short last group has a scale, too
        scales = rows * -(-self._width(shape) // self.group)
        return -(-math.prod(shape) * self.bits // 8) + 2 * scales

    def _width(self, shape: Sequence[int]) -> int:
        """Return the length of a row, 1 for a scalar."""
        return shape[-1] if len(shape) else 1

    def _groups(self, weight: Tensor) -> Tensor:
        """Cut the rows of a weight into groups (R, G, g), the last one filled up with 0."""
        # (..., width): any axes but the last are rows
        rows = weight.reshape(math.prod(weight.shape[:-1]), self._width(weight.shape))
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % self.group))
        return rows.view(len(rows), rows.shape[1] // self.group, self.group)


def _smallest_scale() -> Tensor:
    """Return the smallest scale that is not 0."""
    return torch.tensor(2.0**-24, dtype=torch.float16)
