"""Selection of the largest scores within a pattern: per row, n of each m, or whole blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..core import Blocks, NofM, Partition
from ..core.checks import between
from ..core.errors import DataError
from .topk import keep_top


def keep_n_of_m(
    scores: Mapping[str, Tensor], n: int = 2, m: int = 4, *, axis: int = -1
) -> Partition:
    """Select the n largest scores of each m consecutive ones along an axis.

    scores: tensor's name -> a score of each weight; n, m: n of each m are selected; axis: the axis
      along which a group of m lies. Of equal scores the first is selected. Returns a partition with
      one part, the selected weights.
    Raises: ConfigError unless 1 <= n <= m; ShapeError for an axis that m does not divide; DataError
      for a NaN.
    """
    pattern = NofM(n, m, axis)
    return Partition.from_masks(
        {name: _n_of_m(name, score, pattern) for name, score in scores.items()}, pattern=pattern
    )


def keep_rows(scores: Mapping[str, Tensor], density: float) -> Partition:
    """Select the largest scores of each row: C - floor((1 - density) C) of its C weights.

    scores: tensor's name -> a score of each weight, (out, ...); all axes but the first make up a
    row, and a vector is one row. density: the share to select, rounded as Wanda does. Of equal
    scores the first is selected. If all tensors are matrices of one width, the partition records
    the pattern "n of each C".

    Raises: ConfigError for a density outside 0 ... 1; DataError for a NaN.
    """
    between("density", density, 0, 1, "Try 0.5.")
    masks: dict[str, Tensor] = {}
    counts: set[tuple[int, int]] = set()
    for name, score in scores.items():
        matrix = score.flatten(1) if score.dim() > 1 else score.reshape(1, -1)
        count = kept_of(matrix.shape[1], density)
        _check_no_nan(name, matrix)
        masks[name] = largest(matrix.detach(), count).cpu().view(score.shape)
        counts.add((count, matrix.shape[1]) if score.dim() == 2 else (0, 0))
    # matrices of other widths have no pattern in common
    pattern = next(iter(counts)) if len(counts) == 1 else (0, 0)
    return Partition.from_masks(masks, pattern=NofM(*pattern) if pattern[0] else None)


def kept_of(width: int, density: float) -> int:
    """Return how many of a row's weights are kept: width - floor((1 - density) width)."""
    return width - math.floor((1 - density) * width + 1e-6)


def keep_blocks(scores: Mapping[str, Tensor], count: int, blocks: Blocks) -> Partition:
    """Select the `count` blocks of weights with the largest sums of scores over all tensors.

    scores: tensor's name -> a score of each weight; count: how many blocks to select, over all
      tensors; blocks: the shape of a block. Of equal sums the first is selected. Returns a
      partition with one part, the weights of the selected blocks.
    Raises: ConfigError for more blocks than there are, or a NaN; ShapeError for a tensor that the
      blocks do not tile.
    """
    sums = {n: blocks.groups(s.detach()).float().sum(-1) for n, s in scores.items()}
    block_part = keep_top(sums, count)
    masks: dict[str, Tensor] = {}
    for name, score in scores.items():
        groups = blocks.groups(score)
        mask = block_part.mask(name, 0)[..., None].expand(groups.shape)
        masks[name] = blocks.restored(mask, score.shape)
    return Partition.from_masks(masks, pattern=blocks)


def _n_of_m(name: str, score: Tensor, pattern: NofM) -> Tensor:
    """Return the mask of the n largest scores of each group of m, True = among them."""
    groups = pattern.groups(score.detach())
    _check_no_nan(name, groups)
    return pattern.restored(largest(groups, pattern.n)).cpu().contiguous()


def largest(scores: Tensor, count: int) -> Tensor:
    """Return the mask of the `count` largest scores along the last axis; of equal ones the first.

    scores: (..., width), no NaN among them; count: 0 or less selects none, the width or more all.
      Returns bool, of the same shape.
    """
    width = scores.shape[-1]
    if not 0 < count < width:
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    last = scores.kthvalue(width - count + 1, dim=-1, keepdim=True).values
    larger, equal = scores > last, scores == last
    ties = count - larger.sum(-1, keepdim=True)
    if int(equal.sum()) > int(ties.sum()):  # equal ones beyond the last that is kept
        equal &= equal.cumsum(-1) <= ties
    return larger | equal


def _check_no_nan(name: str, scores: Tensor) -> None:
    """Raise DataError for a NaN among the scores of the tensor `name`."""
    if bool(scores.isnan().any()):
        got, fix = "NaN among them", "Look for a training that diverged: lower its learning rate."
        raise DataError(f"scores of {name!r}", got=got, want="numbers", fix=fix)
