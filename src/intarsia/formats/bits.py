"""Numbers of a few bits, one after the other in bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.errors import ShapeError


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack whole numbers of b bits one after the other into bytes, lowest bit first.

    codes: (n,) int64, each below 2^b; bits: b. Returns (ceil(n b / 8),) uint8.
    """
    if bits == 4:  # the same result with 1 byte of memory for each code, not 32
        half = torch.cat([codes, codes.new_zeros(len(codes) % 2)]).to(torch.uint8)
        return half[0::2] | half[1::2] << 4
    place = torch.arange(8, device=codes.device)
    flat = (codes[:, None] >> place[:bits] & 1).flatten()
    flat = torch.cat([flat, flat.new_zeros(-len(flat) % 8)])  # a last byte that is not full
    return (flat.view(-1, 8) << place).sum(1).to(torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the whole numbers that `pack_bits` packed, (n,) int64.

    packed: (ceil(n b / 8),) uint8; bits: b, of each number; count: n, how many they are.
    Raises: ShapeError if `packed` has another number of bytes.
    """
    if packed.shape != ((want := -(-count * bits // 8)),):
        got, fix = tuple(packed.shape), "Decode with the format and the shape of the encoding."
        raise ShapeError("codes", got=got, want=f"({want},), {count} codes of {bits} bits", fix=fix)
    # the two halves of a byte, without a number for each bit
    if bits == 4:
        return torch.stack([packed & 15, packed >> 4], -1).flatten()[:count].long()
    place = torch.arange(8, device=packed.device)
    flat = (packed.long()[:, None] >> place & 1).flatten()[: count * bits]
    return (flat.view(count, bits) << place[:bits]).sum(1)
