"""Rows of a weight in blocks that share their columns: what sparse convolutions read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Format
from ..core.checks import one_of
from ..core.errors import ShapeError
from ..kernels.chw.steps import BLOCKS, DEEP
from .rows import kept_of


@dataclass(frozen=True)
class RowBlocks(Format):
    """Blocks of `rows` output rows keep the same input channels, each with its whole kernel: exact.

    A weight is (out, in, k, k) or (out, in), a vector one row. A block keeps a channel where any of
    its weights is kept; those that are not are stored as 0. The last block may have fewer rows, and
    is filled up with 0. At a share d of kept (block, channel) pairs and b bytes a weight it takes
    d (b + 4 / rows / inputs / k^2) bytes a weight, and 4 a block.
    inputs: neighbouring channels that are kept together, 4 where products are of codes in fours;
    the last ones are filled up with 0, too, and `channels` are numbers of such groups.
    Stored: ptr (blocks + 1,) int32, where each block's channels begin; channels (kept,) int32;
    values (kept, inputs k^2, rows), the weights of one column together.

    Raises: ConfigError for other blocks than 1, 2, 4 or 8 rows of 1 or 4 inputs; ShapeError for a
    `keep` or stored tensors that do not fit.
    Source: Fast Sparse ConvNets (arXiv:1911.09723), XNNPACK's sparse convolutions; SparseByteNN
    (arXiv:2310.19509). Not for dense weights, nor for zeros that are in no common columns.
    """

    rows: int = 1
    inputs: int = 1

    def __post_init__(self) -> None:
        one_of("rows", self.rows, BLOCKS)
        one_of("inputs", self.inputs, (1, DEEP))

    @property
    def exact(self) -> bool:
        """True: kept blocks are stored as they are."""
        return True

    def encode(
        self, weight: Tensor, keep: Tensor | None = None, moments: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Encode a weight in blocks of output rows, which store the same input channels.

        weight: (out, in, k, k) or (out, in). Returns "ptr" (blocks + 1,), where each block begins
        among the n stored channels; "channels" (n,), the number of each stored input channel; and
        "values" (n, inputs k k, rows), the weights of each.
        """
        keep = kept_of(weight, keep)
        blocks = self._blocks(weight.detach().masked_fill(~keep, 0))
        # a channel is stored for a block if any of its weights is kept
        block_mask = self._blocks(keep).flatten(2).any(-1)  # (blocks, in)
        ends = block_mask.sum(1).cumsum(0).to(torch.int32)
        return {
            "ptr": torch.cat([ends.new_zeros(1), ends]),
            "channels": block_mask.nonzero()[:, 1].to(torch.int32),
            "values": blocks[block_mask],
        }

    def decode(self, stored: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
        """Return the encoded weight, 0 where nothing was stored.  Raises: ShapeError."""
        ptr, channels, values = (stored[name] for name in ("ptr", "channels", "values"))
        blocks = self._blocks(values.new_zeros(tuple(shape)))
        counts, channels = ptr.long().diff(), channels.long()
        fits = len(counts) == len(blocks) and values.shape[1:] == blocks.shape[2:]
        fits = fits and len(values) == len(channels) == int(ptr[-1]) and not int(ptr[0])
        fits = fits and bool((counts >= 0).all()) and bool((channels >= 0).all())
        if not fits or bool((channels >= blocks.shape[1]).any()):
            got = f"{len(counts)} blocks, {len(channels)} channels, {tuple(values.shape)} values"
            want, fix = f"what a weight of {tuple(shape)} becomes", "Decode with its own shape."
            raise ShapeError("row blocks", got=got, want=want, fix=fix)
        # the number of the block that each stored channel belongs to
        block = torch.arange(len(blocks), device=values.device).repeat_interleave(counts)
        blocks[block, channels] = values
        rows = blocks.permute(0, 3, 1, 2).flatten(0, 1)  # (blocks * rows, groups, inputs k k)
        outputs, channels_in = (shape[0], shape[1]) if len(shape) > 1 else (1, shape[-1])
        by_channel = rows.unflatten(2, (self.inputs, -1)).flatten(1, 2)
        return by_channel[:outputs, :channels_in].reshape(tuple(shape))

    def _blocks(self, weight: Tensor) -> Tensor:
        """Cut a weight's output rows into blocks.  weight: (out, in, k, k) or (out, in)."""
        matrix = weight if weight.dim() > 1 else weight.reshape(1, -1)
        matrix = matrix.reshape(*matrix.shape[:2], matrix.shape[2:].numel())
        missing = -matrix.shape[1] % self.inputs, -len(matrix) % self.rows
        # the last axis but two: output rows
        padded = torch.nn.functional.pad(matrix, (0, 0, 0, missing[0], 0, missing[1]))
        grouped = padded.unflatten(1, (padded.shape[1] // self.inputs, self.inputs)).flatten(2)
        return grouped.unflatten(0, (len(padded) // self.rows, self.rows)).permute(0, 2, 3, 1)


def filled(weight: Tensor, rows: int, inputs: int = 1) -> float:
    """Return the share of non-zero weights among those that `RowBlocks(rows, inputs)` would store.

    weight: (out, in, k, k) or (out, in). rows: output rows in a block, which store a channel where
    one of them needs it; inputs: channels that are stored together. 1 if nothing is stored.
    """
    values = RowBlocks(rows, inputs).encode(weight)["values"]
    return float((values != 0).float().mean()) if values.numel() else 1.0
