"""Kept groups of inputs at a few bits a weight, others 0 (GQSA, arXiv:2412.17560)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Format
from ..core.errors import ShapeError
from ..core.schema import check, setting
from ..kernels import native
from ..kernels.gqsa import BLOCKS, affine, bound, codes_of, gqsa, rounded, spread
from .bits import pack_bits, unpack_bits
from .rows import finite, kept_of, matrix, sides

ACTIVATIONS = ("float", "int8")
FAST = (4, 16)  # bits and group of the kernel
# rows of x up to which the kernel is faster than decoding: 130 to 210, and 230 to 1170
FEW = {"float": 128, "int8": 256}
MOST = 2**16 - 1  # groups of a row
PARTS = ("row_offsets", "columns", "codes", "scales", "zeros")


@dataclass(frozen=True)
class GroupSparse(Format):
    """w = s (q - z) in the kept groups of `group` weights of a row, 0 in all others.

    s = (max - min) / (2^b - 1) of the group with 0 between them, in bfloat16; z = round(-min / s);
    q = clamp(round(w / s) + z, 0, 2^b - 1): a 0 is kept as 0.
    Stored, of K kept groups of blocks of r rows: row_offsets (ceil(out / r) + 1,) int32, where each
    block's groups begin; columns (K,) uint16, the group's place in its rows; of each group its rows
    one after the other: codes (ceil(K r group b / 8),) uint8, b bits each, lowest first; scales
    (K r,) bfloat16; zeros (ceil(K r b / 8),) uint8. At 4 bits, 16 a group and density d:
    (5.25 + 1 / r) d bits a weight, and 4 bytes a block. A weight of more than two axes is (out, the
    rest); a last group or block may be shorter, and is stored whole.
    With float activations, NaN and infinite inputs pass as in a dense product, but not at all in
    pruned groups; with int8 the kept groups of such an input are NaN.

    Raises: ConfigError on a setting that cannot be; DataError for weights that are not finite;
    ShapeError for more than 65,535 groups in a row, a `keep` or stored tensors that do not fit.
    Source: paper, sections 3.1 and 3.4. At densities above .8 int4 without indices is smaller.
    """

    bits: int = setting(4, "The bits b of a code; 4 has a kernel.", least=2, most=8, fix="Try 4.")
    group: int = setting(
        16,
        "The number of weights that share a scale; 16 has a kernel.",
        least=1,
        most=2**20,
        fix="Try 16.",
    )
    activations: str = setting(
        "float",
        'The inputs of a product: "float", or "int8", rounded with a scale for each group '
        "before they are multiplied, which is faster.",
        choices=ACTIVATIONS,
    )
    rows: int = setting(
        1,
        "The neighbouring rows that keep the same groups; the product is faster with more of "
        "them, since inputs are read once for all, and the choice of groups is coarser.",
        choices=BLOCKS,
    )

    def __post_init__(self) -> None:
        check(self)

    def encode(
        self, weight: Tensor, keep: Tensor | None = None, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Encode a weight in groups of inputs; groups without a kept weight are left out.

        With r rows in a block, which store the same groups: "row_offsets" (blocks + 1,) and
        "columns" (K,) say where the K stored groups are; "codes" has b bits for each weight, one
        that is not kept counts as 0; "scales" (K r,) and "zeros", b bits, one for each group and
        row: a weight is scale (code - zero).
        """
        keep = kept_of(weight, keep)
        w = finite(weight)
        group_mask = self.blocks(self.groups(matrix(keep))).flatten(2).any(-1)  # (B, C)
        # a group is kept whole; its pruned weights are stored as 0
        groups = self.blocks(self.groups(matrix(w.masked_fill(~keep, 0))))
        kept_groups = groups[group_mask]  # (K, r, G)
        scales, zeros = affine(kept_groups, self.bits)
        codes = codes_of(kept_groups, scales[..., None], zeros[..., None], self.bits)
        return self.stored(codes, scales, zeros, group_mask)

    def stored(
        self, codes: Tensor, scales: Tensor, zeros: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """Return the tensors of the file for weights that are quantised already.

        codes: (K, r, group), scales, zeros: (K, r), of K stored groups in blocks of r rows; mask:
          (B, C) bool, which of the C groups each of the B blocks stores: K are True.
        Raises: ShapeError for too many groups.
        """
        across = mask.shape[1]
        if across > MOST or len(codes) >= 2**31:
            got = f"{across:,} groups in a row, {len(codes):,} in all"
            want, fix = f"at most {MOST:,} and 2^31 - 1", "Take larger groups."
            raise ShapeError("weight", got=got, want=want, fix=fix)
        ends = mask.sum(1).cumsum(0).to(torch.int32)
        return {
            "row_offsets": torch.cat([ends.new_zeros(1), ends]),
            "columns": mask.nonzero()[:, 1].to(torch.uint16),
            "codes": pack_bits(codes.flatten().long(), self.bits),
            "scales": scales.flatten().bfloat16(),
            "zeros": pack_bits(zeros.flatten().long(), self.bits),
        }

    def decode(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return the encoded weight in float32, 0 in groups that were not stored."""
        rows, width = sides(shape)
        across = self.across(width)
        self.check(stored, shape)
        offsets, columns, codes, scales, zeros = (stored[part] for part in PARTS)
        q = unpack_bits(codes, self.bits, len(scales) * self.group).view(-1, self.rows, self.group)
        z = unpack_bits(zeros, self.bits, len(scales)).view(-1, self.rows, 1)
        groups = (q - z).float() * scales.float().view_as(z)
        dense = spread(groups, offsets, columns, across)
        return dense[:rows, :width].reshape(tuple(shape))

    def matmul(self, x: Tensor, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return x W^T: up to `FEW` rows, without gradients, by compiled code on the CPU."""
        width = shape[-1] if len(shape) else 1
        flat = x.reshape(x.shape[:-1].numel(), width)
        # the kernel was written for one layout, and has no backward
        fast = (self.bits, self.group) == FAST and len(shape) == 2 and x.device.type == "cpu"
        learned = torch.is_grad_enabled() and x.requires_grad
        fast = fast and x.dtype != torch.float64 and native.load() is not None
        if not fast or learned or len(flat) > FEW[self.activations]:
            if self.activations == "int8" and not learned:
                flat = rounded(self.padded(flat.float()), self.group)[:, :width].to(x)
            return (flat @ self.decode(stored, shape).to(x).T).view(*x.shape[:-1], shape[0])
        offsets, columns, codes, scales, zeros = (stored[part] for part in PARTS)
        if len(offsets) != -(-shape[0] // self.rows) + 1:
            self.check(stored, shape)
        padded, integers = self.padded(flat.float()), self.activations == "int8"
        y = gqsa(padded, offsets, columns, codes, scales, zeros, integers, self.rows)
        return y[:, : shape[0]].to(x.dtype).reshape(*x.shape[:-1], shape[0])

    def bound(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Any:
        """Return a prepared call x -> x W^T for few rows of x, None without a native kernel."""
        blocks = -(-shape[0] // self.rows)
        if (self.bits, self.group) != FAST or len(stored["row_offsets"]) != blocks + 1:
            return None
        parts, sides = tuple(stored[part] for part in PARTS), (shape[0], shape[1])
        return bound(parts, sides, self.rows, self.activations == "int8", FEW[self.activations])

    def check(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> None:
        """Raise ShapeError unless the stored tensors fit each other and a weight of this shape.

        stored: the tensors of a file. A kernel trusts them: wrong places would read other memory.
        """
        rows, width = sides(shape)
        offsets, columns, scales = (stored[p] for p in ("row_offsets", "columns", "scales"))
        places, counts = columns.long(), offsets.long().diff()
        count, blocks = len(places), -(-rows // self.rows)
        pieces = count * self.rows
        # the kernel trusts offsets and places: wrong ones would read other memory
        fits = len(counts) == blocks and len(scales) == pieces and int(offsets[-1]) == count
        fits = fits and not int(offsets[0]) and bool((counts >= 0).all())
        fits = fits and stored["codes"].shape == (-(-pieces * self.group * self.bits // 8),)
        fits = fits and stored["zeros"].shape == (-(-pieces * self.bits // 8),)
        if fits and count:
            # places must rise within each block
            block = torch.arange(blocks, device=places.device).repeat_interleave(counts)
            place = block * self.across(width) + places
            fits = bool((places < self.across(width)).all() and (place.diff() > 0).all())
        if not fits:
            got = f"{len(counts)} blocks of {self.rows} rows with {count} groups"
            want, fix = f"what a weight of {tuple(shape)} becomes", "Decode with its own shape."
            raise ShapeError("groups", got=got, want=want, fix=fix)

    def across(self, width: int) -> int:
        """Return the number of groups in a row of `width` weights, a short last one counted."""
        return -(-width // self.group)

    def padded(self, x: Tensor) -> Tensor:
        """Append zeros to the last axis, up to whole groups."""
        missing = -x.shape[-1] % self.group
        return torch.nn.functional.pad(x, (0, missing)) if missing else x

    def groups(self, rows: Tensor) -> Tensor:
        """Cut rows into groups.  (R, in) -> (R, C, group), a short last group filled with 0."""
        return self.padded(rows).reshape(len(rows), self.across(rows.shape[1]), self.group)

    def blocks(self, groups: Tensor) -> Tensor:
        """Cut rows into blocks of r, with groups of the same columns put side by side.

        groups: (R, C, ...), C groups in each of R rows.  -> (ceil(R / r), C, r, ...), a short last
        block filled with 0.
        """
        missing = groups.new_zeros(-len(groups) % self.rows, *groups.shape[1:])
        return torch.cat([groups, missing]).unflatten(0, (-1, self.rows)).transpose(1, 2)
