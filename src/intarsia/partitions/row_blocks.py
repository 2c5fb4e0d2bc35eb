"""Blocks of rows that share their columns, and the order of rows that keeps most in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..core import Partition
from ..core.checks import at_least, between
from .topk import keep_top


def block_scores(score: Tensor, rows: int) -> Tensor:
    """Return the mean score of each block of weights: `rows` consecutive outputs, one input.

    score: of each weight, (out, in, ...); the scores of a convolution's kernel are summed first,
      then averaged over the outputs of a block. Returns (ceil(out / rows), in). Means are used
      since the last block of each input may have fewer outputs.
    """
    matrix = score.detach().float().reshape(*score.shape[:2], -1).sum(-1)  # (out, in)
    blocks = -(-len(matrix) // rows)
    padded = torch.nn.functional.pad(matrix, (0, 0, 0, blocks * rows - len(matrix)))
    counts = torch.full((blocks, 1), float(rows), device=score.device)
    if len(matrix) % rows:
        counts[-1] = len(matrix) % rows
    return padded.view(blocks, rows, -1).sum(1) / counts


def keep_row_blocks(
    scores: Mapping[str, Tensor], densities: Mapping[str, float], rows: int = 4
) -> Partition:
    """Select the round(density * blocks) blocks of the largest mean scores of each tensor.

    scores: name -> score of each weight, (out, in, ...); densities: name -> share of blocks to
      keep; rows: a block has so many consecutive outputs, one input, and the whole kernel of a
      convolution. With rows=1 a block of a linear map is a single weight. Among equal means the
      first are kept. Returns a partition with one part, the kept weights.
    Raises: ConfigError for a density outside 0 ... 1, rows below 1, or a NaN.
    Source: SparseByteNN (arXiv:2310.19509); 1xN pruning (arXiv:2105.14713).
    """
    at_least("rows", rows, 1)
    masks: dict[str, Tensor] = {}
    for name, score in scores.items():
        between(f"density of {name!r}", densities[name], 0, 1, "Try 0.5.")
        mean = block_scores(score, rows)
        block_mask = keep_top({name: mean}, round(densities[name] * mean.numel())).mask(name, 0)
        by_row = block_mask.repeat_interleave(rows, 0)[: len(score)]  # (out, in)
        wide = by_row.reshape(*by_row.shape, *[1] * (score.dim() - 2))
        masks[name] = wide.expand(score.shape).contiguous()
    return Partition.from_masks(masks)


def kept_in_blocks(weights: Sequence[Tensor], order: Tensor, rows: int, density: float) -> float:
    """Rate an order of rows: return the sum of the weights in the blocks that are then kept.

    A block is `rows` consecutive rows and one column. In each matrix the share `density` of the
    blocks is kept, the ones with the largest means; all weights of other blocks are dropped.
    weights: (out, in) each, >= 0, such as |W|; order: (out,) int64, row i becomes the former row
    order[i]; density: 0 ... 1.
    """
    total = 0.0
    for weight, block_mask in zip(
        weights, _column_masks(weights, order, rows, density), strict=True
    ):
        total += float((weight[order] * block_mask.repeat_interleave(rows, 0)[: len(order)]).sum())
    return total


def row_order(weights: Sequence[Tensor], rows: int, density: float, rounds: int = 3) -> Tensor:
    """Find an order of rows with which blocks of consecutive rows keep larger weights.

    A block is `rows` consecutive rows and one column; it is kept or dropped as a whole.
    weights: (out, in) each, >= 0, with their rows reordered in the same way; rounds: repetitions of
    step 2.
    1. Greedy: a group of rows begins with the largest row that is in no group yet, and takes the
      rows that have most in common with it, sum_j min(w_aj, w_bj) over its largest columns j.
    2. Columns are chosen for each group, then rows are assigned to the groups again (Hungarian
      method); an assignment that keeps no more weight in blocks is not used.
    Returns the order, (out,) int64: row i becomes the former row order[i]. With it the kept blocks
    have at least as large a sum of weights (`kept_in_blocks`) as in the present order.
    """
    plain = torch.arange(len(weights[0]))
    starts = [plain, _greedy_order(weights, rows, density)]
    candidates = [_refine(weights, start, rows, density, rounds) for start in starts]
    norm = partial(kept_in_blocks, weights, rows=rows, density=density)
    return max([plain, *candidates], key=norm)


def _column_masks(
    weights: Sequence[Tensor], order: Tensor, rows: int, density: float
) -> list[Tensor]:
    """Choose which columns each group of rows keeps: (groups, in) bool for each weight."""
    block_masks: list[Tensor] = []
    # row i becomes the former row order[i]; the (group, column) pairs of largest mean are kept
    for weight in weights:
        mean = block_scores(weight[order], rows)
        block_masks.append(keep_top({"w": mean}, round(density * mean.numel())).mask("w", 0))
    return block_masks


def _greedy_order(weights: Sequence[Tensor], rows: int, density: float) -> Tensor:
    """Group similar rows: return an order of the rows, (out,) int64, group after group."""
    # weights: (out, in) each, >= 0; the row a gets the rows b of largest
    # sum_j min(w_aj, w_bj) over the columns j in which a is largest
    wide = torch.cat(list(weights), 1)  # (out, sum of in)
    free = torch.ones(len(wide), dtype=torch.bool)
    norms, order = wide.sum(1), list[Tensor]()
    count = max(1, round(density * wide.shape[1]))
    while bool(free.any()):
        # start a block with the strongest free row, and add those that share most of its columns
        first = norms.masked_fill(~free, -1).argmax()
        free[first] = False
        columns = wide[first].topk(count).indices
        free_rows = free.nonzero().flatten()
        common = torch.minimum(wide[free_rows][:, columns], wide[first, columns]).sum(1)
        near = free_rows[common.topk(min(rows - 1, len(free_rows))).indices]
        free[near] = False
        order.append(torch.cat([first[None], near]))
    # the last block, which may have fewer rows, was formed last
    return torch.cat(order)


def _refine(
    weights: Sequence[Tensor], order: Tensor, rows: int, density: float, rounds: int
) -> Tensor:
    """Improve an order of rows, (out,) int64, for a sum of kept weights that is not smaller."""
    # weights: (out, in) each, >= 0
    best, best_norm = order, kept_in_blocks(weights, order, rows, density)
    slot = torch.arange(len(order)) // rows
    for _ in range(rounds):
        block_masks = _column_masks(weights, best, rows, density)
        # gain[i, b]: the sum of row i in the columns of block b
        pairs = zip(weights, block_masks, strict=True)
        gain = sum(weight @ mask.to(weight).T for weight, mask in pairs)  # (out, blocks)
        assert isinstance(gain, Tensor)
        # the Hungarian method: each row to one place in a block, for the largest sum of gains
        row, place = linear_sum_assignment(gain[:, slot].numpy(), maximize=True)
        moved = torch.empty_like(best)
        moved[torch.from_numpy(place)] = torch.from_numpy(row)
        norm = kept_in_blocks(weights, moved, rows, density)
        if norm <= best_norm:
            break
        best, best_norm = moved, norm
    return best
