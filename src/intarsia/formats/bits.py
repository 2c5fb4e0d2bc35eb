"""Numbers of a few bits, one after the other in bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import ShapeError


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Numbers below 2^b, lowest bit first, without gaps.  (n,) int64 -> (ceil(n b / 8),) uint8."""
    place = torch.arange(8, device=codes.device)
    flat = (codes[:, None] >> place[:bits] & 1).flatten()
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)])  # a last byte that is not full
    return (flat.view(-1, 8) << place).sum(1).to(torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack_bits`.  (ceil(n b / 8),) uint8 -> (n,) int64.

    Raises: ShapeError for another number of bytes.
    """
    if packed.shape != ((want := -(-count * bits // 8)),):
        got, fix = tuple(packed.shape), "Decode with the format and the shape of the encoding."
        raise ShapeError("codes", got=got, want=f"({want},), {count} codes of {bits} bits", fix=fix)
    place = torch.arange(8, device=packed.device)
    flat = (packed.long()[:, None] >> place & 1).flatten()[: count * bits]
    return (flat.view(count, bits) << place[:bits]).sum(1)
