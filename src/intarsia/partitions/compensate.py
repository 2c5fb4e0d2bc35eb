"""Weights to keep and how, while later columns make up for the error: SparseGPT and GPTQ.

Both are one loop over the columns (SparseGPT, arXiv:2301.00774, algorithm 1; GPTQ,
arXiv:2210.17323, algorithm 1), so that a weight may be pruned and rounded at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core import Blocks, NofM, Partition
from ..core.checks import between
from ..core.errors import ConfigError, ShapeError
from ..scores import Statistics, inverse_factor
from .patterns import largest

Code = Callable[[Tensor, int], Tensor]  # (a column (out,), its index) -> what can be stored
Pattern = NofM | Blocks | None
NAME = "weight"


def choose_and_compensate(
    weight: Tensor,
    seen: Statistics,
    density: float = 1.0,
    *,
    pattern: Pattern = None,
    code: Code | None = None,
    damp: float = 0.01,
    block: int = 128,
    keep: Tensor | None = None,
    name: str = NAME,
) -> tuple[Partition, Tensor]:
    """Which weights to keep, and the weights with errors made up for: ||W X - W^ X|| is small.

    weight: (out, in) -> a one-part Partition of `name`, and W^ (out, in), 0 where not kept.
    density: with pattern=None the share kept in every `block` columns, over all rows; with Blocks
      the share of blocks; `NofM` along the inputs says its own.  density=1: nothing is pruned.
    code: rounds a column to what a format can store; None = weights stay real numbers. SparseGPT is
      code=None; GPTQ is density=1; with both, kept weights are rounded and the others are 0.
    keep: bool, weights outside are pruned whatever their score, as part of the density.
    Column by column, its error e = (w_j - w^_j) / U_jj is taken off the columns behind it,
    W_k -= e U_jk, with U of `scores.inverse_factor`.

    Raises: ConfigError for settings that cannot be; ShapeError for widths that do not fit;
    DataError for a Hessian that is not finite or not positive definite.
    """
    _check(weight, density, pattern, block)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    w = weight.detach().to(dtype).clone()
    factor = inverse_factor(seen.second_moment, damp, f"moments of inputs of {name!r}").to(w)
    w[:, seen.second_moment.diagonal().to(w.device) == 0] = 0  # inputs that are always 0
    step = pattern.m if isinstance(pattern, NofM) else block
    block = max(step, block // step * step)
    kept = torch.ones_like(w, dtype=torch.bool)
    for start in range(0, w.shape[1], block):
        stop = min(start + block, w.shape[1])
        part, inside = w[:, start:stop], factor[start:stop, start:stop]  # views
        errors = torch.zeros_like(part)
        for j in range(stop - start):
            if j % step == 0:
                group = slice(start + j, min(start + j + step, stop))
                score = w[:, group].square() / factor.diagonal()[group].square()  # eq. 5
                if keep is not None:
                    score[~keep[:, group]] = -1
                kept[:, group] = _chosen(score, density, pattern)
                if keep is not None:
                    kept[:, group] &= keep[:, group]
            column, mask = part[:, j].clone(), kept[:, start + j]
            stored = column if code is None else code(column, start + j).to(dtype)
            stored = torch.where(mask, stored, torch.zeros_like(stored))
            errors[:, j] = (column - stored) / inside[j, j]
            part[:, j + 1 :] -= errors[:, j, None] * inside[j, None, j + 1 :]
            part[:, j] = stored
        w[:, stop:] -= errors @ factor[start:stop, stop:]
    found = Partition.from_masks({name: kept.cpu()}, pattern=pattern)
    return found, w.to(weight.dtype)


def _chosen(score: Tensor, density: float, pattern: Pattern) -> Tensor:
    """The part of a group of columns that is kept, (out, columns) bool."""
    if isinstance(pattern, NofM):
        return largest(score, pattern.n)
    if density == 1:
        return torch.ones_like(score, dtype=torch.bool)
    groups = score[..., None] if pattern is None else pattern.groups(score)
    sums = groups.sum(-1).flatten()
    chosen = largest(sums, round(density * len(sums))).view(groups.shape[:-1])
    whole = chosen[..., None].expand(groups.shape)
    return chosen if pattern is None else pattern.restored(whole, score.shape)


def _check(weight: Tensor, density: float, pattern: Pattern, block: int) -> None:
    between("density", density, 0, 1, "Try 0.5.")
    between("block", block, 1, 2**20, "Try 128.")
    if weight.dim() != 2:
        got, fix = tuple(weight.shape), "Flatten it to (out, in), as its inputs are counted."
        raise ShapeError("weight", got=got, want="(out, in)", fix=fix)
    if isinstance(pattern, NofM):
        if pattern.axis not in (-1, 1):
            fix = "Columns are fixed one after the other: only the inputs can be grouped."
            raise ConfigError("axis of N:M", got=pattern.axis, want="-1, the inputs", fix=fix)
        pattern.groups(weight)  # divides, or raises
