"""Weights of three levels a row, as words of a dictionary (QMoE, arXiv:2310.16795)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Format
from ..core.errors import ShapeError
from ..core.schema import check, setting
from ..kernels import native
from ..kernels.ternary import Dictionary, bound, dictionary, digits_of, ternary, words_of
from .rows import finite, kept_of, matrix, sides

FEW = 384  # rows of x up to which the kernel is faster than decoding the weight: 370 to 730
PARTS = ("codes", "row_offsets", "levels")


@dataclass(frozen=True)
class Ternary(Format):
    """Weights rounded to the nearest of 0, the least and the largest of their row.

    Levels are min(w, 0), 0 and max(w, 0) of each row in bfloat16, thresholds at half; a weight in a
    row without negative ones, or without positive ones, has two. Digits (0 for a zero, 1 for the
    least, 2 for the largest) are cut into the longest words of a dictionary of 65,536, made for
    digits that are 0 with probability `zeros`.
    Stored: codes (K,) uint16, row by row; row_offsets (out + 1,) int64, where each row's begin;
    levels (out, 2) bfloat16. The dictionary is not stored: it follows from `zeros`. Rows of an odd
    width have a 0 behind. A weight of more than two axes is (out, the rest), a vector one row.
    An infinite input may give NaN where a dense product gives infinity.

    Raises: ConfigError for `zeros` outside .4 ... .995; DataError for weights that are not finite;
    ShapeError for a `keep` or stored tensors that do not fit.
    Source: paper, sections 3.2 and 4. Not by rounding alone: `Qmoe` makes up for its errors.
    """

    zeros: float = setting(
        0.885,
        "The share of zeros for which the dictionary is made; far from it the weight takes more "
        "bits, and `Ternary.of` finds a better one.",
        least=0.4,
        most=0.995,
        fix="Try 0.885.",
    )

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def of(cls, digits: Tensor) -> Ternary:
        """Return the format with a dictionary made for the share of zeros among these digits.

        digits: any shape; 0 for a weight of 0, else 1 or 2.
        """
        share = float((digits == 0).double().mean()) if digits.numel() else 0.885
        return cls(min(0.995, max(0.4, round(share, 3))))

    def encode(
        self, weight: Tensor, keep: Tensor | None = None, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Round each weight to one of its row's three levels, min, 0 and max, and encode which.

        weight: read as (out, the rest). Returns "codes" (K,), each the number of a word in a
        dictionary, which stands for a run of weights' levels; "row_offsets" (out + 1,), where each
        row begins in "codes"; "levels" (out, 2), min and max of each row.
        Raises: DataError for weights that are not finite.
        """
        w = finite(weight)
        if keep is not None:
            w = w.masked_fill(~kept_of(weight, keep), 0)
        rows = matrix(w)
        levels = levels_of(rows)
        return self.stored(nearest(rows, levels), levels)

    @property
    def row_group(self) -> int:
        """1: rows are stored one after another."""
        return 1

    def part(self, stored: Mapping[str, Tensor], first: int, count: int) -> dict[str, Tensor]:
        """Return the stored tensors of some rows, as views but for their offsets."""
        # offsets count codes from the start of the whole; a part's offsets begin at 0 again
        offsets = stored["row_offsets"][first : first + count + 1]
        codes = stored["codes"][int(offsets[0]) : int(offsets[-1])]
        levels = stored["levels"][first : first + count]
        return {"codes": codes, "row_offsets": offsets - offsets[0], "levels": levels}

    def joined(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the stored tensors of matrices one above the other."""
        offsets = [parts[0]["row_offsets"]]
        for part in parts[1:]:
            offsets.append(part["row_offsets"][1:] + offsets[-1][-1])
        return super().joined(parts) | {"row_offsets": torch.cat(offsets)}

    def stored(self, digits: Tensor, levels: Tensor) -> dict[str, Tensor]:
        """Return the tensors of the file for weights that are rounded to levels already.

        digits: (R, C) uint8, 0 for a zero, 1 for the row's least level, 2 for its largest. levels:
        (R, 2), least and largest of each row. Returns "codes" (K,), each the number of a word in
        the dictionary, which stands for a run of digits; "row_offsets" (R + 1,), where each row
        begins in "codes"; and "levels".
        """
        # words are pairs of digits, so that an odd row gets a zero behind
        even = torch.nn.functional.pad(digits, (0, digits.shape[1] % 2))
        codes, offsets = words_of(even, self.dictionary)
        return {"codes": codes, "row_offsets": offsets, "levels": levels.bfloat16()}

    def decode(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return the encoded weight in float32.  Raises: ShapeError."""
        self.check(stored, shape)
        rows, width = sides(shape)
        levels = stored["levels"].float()
        digits = digits_of(stored["codes"], self.dictionary).view(rows, width + width % 2).long()
        level = torch.cat([levels.new_zeros(rows, 1), levels], 1)  # 0, min, max
        return level.gather(1, digits[:, :width]).reshape(tuple(shape))

    def matmul(self, x: Tensor, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return x W^T: for up to FEW rows, without gradients, decode W in a CPU's registers."""
        width = shape[-1] if len(shape) else 1
        flat = x.reshape(x.shape[:-1].numel(), width)
        learned = torch.is_grad_enabled() and x.requires_grad
        suits = x.device.type == "cpu" and len(shape) == 2 and x.dtype != torch.float64
        suits = suits and native.load() is not None
        # no kernel, or too many rows: decode once, and multiply densely
        if learned or not suits or len(flat) > FEW:
            return (flat @ self.decode(stored, shape).to(x).T).view(*x.shape[:-1], shape[0])
        # a word is a pair of digits: rows of an odd width are stored with a 0 behind
        padded = torch.nn.functional.pad(flat.float(), (0, width % 2))
        codes, offsets, levels = (stored[part] for part in PARTS)
        if len(levels) != shape[0]:
            self.check(stored, shape)
        y = ternary(padded, codes, offsets, levels, self.dictionary)
        return y.to(x.dtype).view(*x.shape[:-1], shape[0])

    def bound(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Any:
        """Return a prepared call x -> x W^T for few rows of x, or None.

        None without a native kernel, for a weight of other than two dimensions or with another
        number of rows, and for tensors that are not contiguous.
        """
        if len(shape) != 2 or len(stored["levels"]) != shape[0]:
            return None
        return bound(tuple(stored[part] for part in PARTS), shape[1], self.dictionary, FEW)

    def check(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> None:
        """Raise ShapeError unless the stored tensors fit each other and a weight of this shape.

        stored: "codes", "row_offsets" and "levels" of a file.
        """
        rows, width = sides(shape)
        codes, offsets, levels = (stored[part] for part in PARTS)
        fits = offsets.shape == (rows + 1,) and levels.shape == (rows, 2) and codes.dim() == 1
        fits = fits and not int(offsets[0]) and int(offsets[-1]) == len(codes)
        fits = fits and bool((offsets.diff() >= 0).all())
        if fits:
            # the words of a row must cover exactly its digits
            ends = torch.cat(
                [offsets.new_zeros(1), self.dictionary.lengths[codes.long()].cumsum(0)]
            )
            fits = bool((ends[offsets].diff() == width + width % 2).all())
        if not fits:
            got = f"{len(codes)} words in {len(offsets) - 1} rows"
            want, fix = f"what a weight of {tuple(shape)} becomes", "Decode with its own shape."
            raise ShapeError("words", got=got, want=want, fix=fix)

    @property
    def dictionary(self) -> Dictionary:
        """The runs of digits that a code stands for; built once in a process."""
        return dictionary(self.zeros)

    def describe(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> str:
        """Describe the bits that an encoded weight takes, and a better dictionary if there is one.

        stored: the tensors that `encode` returned; shape: the weight's.
        """
        decoded = matrix(self.decode(stored, shape))
        # an entropy coder could not take fewer bits than `entropy(share)` for each weight
        size = max(1, decoded.numel())
        share = float((decoded == 0).sum()) / size
        bits = 16 * len(stored["codes"]) / size
        text = f"{bits:.3f} bits a weight, entropy {entropy(share):.3f}"
        # digits with another share of zeros need more words of this dictionary
        if abs(share - self.zeros) > 0.05:
            better = min(0.995, max(0.4, round(share, 3)))
            text += f"; {share:.3f} of them are 0, not {self.zeros}: try Ternary(zeros={better:g})"
        return text


def levels_of(rows: Tensor) -> Tensor:
    """Return each row's least level, min(0, its entries), and its largest, max(0, its entries).

    rows: (R, C) -> (R, 2) float32, rounded to bfloat16.
    """
    if not rows.shape[1]:
        return rows.new_zeros(len(rows), 2)
    ends = torch.stack([rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)], 1)
    return ends.bfloat16().float()


def nearest(rows: Tensor, levels: Tensor) -> Tensor:
    """Round each weight to the nearest of three levels: 0, its row's least, and its row's largest.

    rows: (R, C) weights; levels: (R, 2), least and largest level of each row. Returns (R, C) uint8,
    the level's digit: 0, 1 for the least, 2 for the largest. A weight half-way becomes 0.
    """
    low, high = levels[:, :1], levels[:, 1:]
    digits = torch.zeros(rows.shape, dtype=torch.uint8)
    digits[(rows < low / 2) & (low < 0)] = 1
    digits[(rows > high / 2) & (high > 0)] = 2
    return digits


def entropy(zeros: float) -> float:
    """Return the entropy in bits of a digit: 0 with probability `zeros`, else 1 or 2 alike."""
    rest = 1 - zeros
    parts = [(zeros, 1), (rest / 2, 2)]
    return -sum(n * p * math.log2(p) for p, n in parts if p > 0)
