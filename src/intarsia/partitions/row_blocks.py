"""Blocks of rows that share their columns, and the order of rows that keeps most in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..core import Partition
from ..core.checks import at_least, between
from .topk import keep_top


def block_scores(score: Tensor, rows: int) -> Tensor:
    """Return the mean score of `rows` output rows x one input, with its whole kernel.

    (out, in, ...) -> (ceil(out / rows), in); the last block may have fewer rows, so it is a mean.
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
    """In each tensor the blocks of the largest mean scores, round(density * blocks), as one part.

    A block is `rows` consecutive outputs x one input x its whole kernel; of one row and a linear
    map or a 1x1 convolution it is a weight. Of equal ones the first.
    Raises: ConfigError for a density outside 0 ... 1, rows below 1, or a NaN.
    Source: SparseByteNN (arXiv:2310.19509); 1xN pruning (arXiv:2105.14713).
    """
    at_least("rows", rows, 1)
    masks: dict[str, Tensor] = {}
    for name, score in scores.items():
        between(f"density of {name!r}", densities[name], 0, 1, "Try 0.5.")
        mean = block_scores(score, rows)
        kept = keep_top({name: mean}, round(densities[name] * mean.numel())).mask(name, 0)
        by_row = kept.repeat_interleave(rows, 0)[: len(score)]  # (out, in)
        wide = by_row.reshape(*by_row.shape, *[1] * (score.dim() - 2))
        masks[name] = wide.expand(score.shape).contiguous()
    return Partition.from_masks(masks)


def kept_in_blocks(weights: Sequence[Tensor], order: Tensor, rows: int, density: float) -> float:
    """Return the L1 norm of what blocks keep of some weights (out, in) >= 0, rows in an order."""
    total = 0.0
    for weight, kept in zip(weights, _kept(weights, order, rows, density), strict=True):
        total += float((weight[order] * kept.repeat_interleave(rows, 0)[: len(order)]).sum())
    return total


def row_order(weights: Sequence[Tensor], rows: int, density: float, rounds: int = 3) -> Tensor:
    """Return an order of the rows of some weights that share them, so that blocks keep more.

    weights: (out, in) each, >= 0.  Greedy: the strongest free row, and the rows - 1 that have most
    in common with it, sum_j min(w_a, w_b) over its largest columns. Then, `rounds` times, columns
    are chosen for the blocks, and rows assigned to them anew (Hungarian method), which never keeps
    less.  (out,) int64: row i becomes what was row order[i]; never worse than the rows as they are.
    """
    plain = torch.arange(len(weights[0]))
    starts = [plain, _greedy(weights, rows, density)]
    found = [_refined(weights, start, rows, density, rounds) for start in starts]
    return max([plain, *found], key=lambda order: kept_in_blocks(weights, order, rows, density))


def _kept(weights: Sequence[Tensor], order: Tensor, rows: int, density: float) -> list[Tensor]:
    """Which columns the blocks keep of each weight, (blocks, in) bool."""
    found: list[Tensor] = []
    for weight in weights:
        mean = block_scores(weight[order], rows)
        found.append(keep_top({"w": mean}, round(density * mean.numel())).mask("w", 0))
    return found


def _greedy(weights: Sequence[Tensor], rows: int, density: float) -> Tensor:
    wide = torch.cat(list(weights), 1)  # (out, sum of in)
    free = torch.ones(len(wide), dtype=torch.bool)
    norms, order = wide.sum(1), list[Tensor]()
    count = max(1, round(density * wide.shape[1]))
    while bool(free.any()):
        first = norms.masked_fill(~free, -1).argmax()
        free[first] = False
        columns = wide[first].topk(count).indices
        others = free.nonzero().flatten()
        common = torch.minimum(wide[others][:, columns], wide[first, columns]).sum(1)
        near = others[common.topk(min(rows - 1, len(others))).indices]
        free[near] = False
        order.append(torch.cat([first[None], near]))
    # the last block, which may have fewer rows, was formed last
    return torch.cat(order)


def _refined(
    weights: Sequence[Tensor], order: Tensor, rows: int, density: float, rounds: int
) -> Tensor:
    best, most = order, kept_in_blocks(weights, order, rows, density)
    slot = torch.arange(len(order)) // rows
    for _ in range(rounds):
        kept = _kept(weights, best, rows, density)
        gain = sum(w @ k.to(w).T for w, k in zip(weights, kept, strict=True))  # (out, blocks)
        assert isinstance(gain, Tensor)
        row, place = linear_sum_assignment(gain[:, slot].numpy(), maximize=True)
        moved = torch.empty_like(best)
        moved[torch.from_numpy(place)] = torch.from_numpy(row)
        now = kept_in_blocks(weights, moved, rows, density)
        if now <= most:
            break
        best, most = moved, now
    return best
