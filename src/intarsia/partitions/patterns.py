"""The largest scores within a pattern that kernels know: n of each m, or whole blocks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core import Blocks, NofM, Partition
from ..core.errors import DataError
from .topk import keep_top


def keep_n_of_m(
    scores: Mapping[str, Tensor], n: int = 2, m: int = 4, *, axis: int = -1
) -> Partition:
    """The n largest scores of each m along an axis, as the one part; of equal ones the first.

    Raises: ConfigError unless 1 <= n <= m; ShapeError for an axis that m does not divide;
    DataError for a NaN.
    """
    pattern = NofM(n, m, axis)
    return Partition.from_masks(
        {name: _n_of_m(name, score, pattern) for name, score in scores.items()}, pattern=pattern
    )


def keep_blocks(scores: Mapping[str, Tensor], count: int, blocks: Blocks) -> Partition:
    """The `count` blocks of the largest sums of scores, over all tensors; of equal ones the first.

    Raises: ConfigError for more blocks than there are, or a NaN; ShapeError for a tensor that the
    blocks do not tile.
    """
    sums = {n: blocks.groups(s.detach()).float().sum(-1) for n, s in scores.items()}
    chosen = keep_top(sums, count)
    masks: dict[str, Tensor] = {}
    for name, score in scores.items():
        groups = blocks.groups(score)
        whole = chosen.mask(name, 0)[..., None].expand(groups.shape)
        masks[name] = blocks.restored(whole, score.shape)
    return Partition.from_masks(masks, pattern=blocks)


def _n_of_m(name: str, score: Tensor, pattern: NofM) -> Tensor:
    groups = pattern.groups(score.detach())
    if bool(groups.isnan().any()):
        got, fix = "NaN among them", "Look for a training that diverged: lower its learning rate."
        raise DataError(f"scores of {name!r}", got=got, want="numbers", fix=fix)
    best = groups.argsort(dim=-1, descending=True, stable=True)[..., : pattern.n]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, best, True)
    return pattern.restored(mask).cpu().contiguous()
