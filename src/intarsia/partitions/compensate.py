"""Pruning and rounding column by column, later columns making up for it: SparseGPT and GPTQ.

Both are one loop over the columns (SparseGPT, arXiv:2301.00774, algorithm 1; GPTQ,
arXiv:2210.17323, algorithm 1), so that a weight may be pruned and rounded at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core import Blocks, NofM, Partition
from ..core.checks import between
from ..core.errors import ConfigError, ShapeError
from ..scores import Statistics, inverse_factor
from .patterns import largest

Code = Callable[[Tensor, int], Tensor]  # (a column (out,), its index) -> what can be stored
Pattern = NofM | Blocks | None


@runtime_checkable
class GroupCode(Protocol):
    """A `code` that looks at `group` columns before it rounds the first one of them."""

    group: int

    def begin(self, columns: Tensor, start: int) -> None:
        """Prepare to round the next group of columns, for example choose their scale.

        columns: (out, group), from which the errors of earlier columns are subtracted already.
        """
        ...

    def __call__(self, column: Tensor, index: int) -> Tensor: ...


NAME = "weight"
STRIP = 32  # columns that pass their errors on to the rest of a block at once


def choose_and_compensate(
    weight: Tensor,
    statistics: Statistics,
    density: float = 1.0,
    *,
    pattern: Pattern = None,
    code: Code | None = None,
    damp: float = 0.01,
    block: int = 128,
    keep: Tensor | None = None,
    name: str = NAME,
) -> tuple[Partition, Tensor]:
    """Prune or round a weight column by column; later columns make up for earlier errors.

    weight: W (out, in); statistics: second moments of its inputs X. Returns a one-part Partition
      of `name` with the kept weights, and the new weight W^, 0 elsewhere; W^ X is close to W X.
    density: with pattern=None the share kept in every `block` columns, over all rows; with Blocks
      the share of blocks, 1 prunes nothing; unused with `NofM`, which keeps n of each m.
    code: rounds a column to what a format can store, see also `GroupCode`; None = real numbers.
      SparseGPT is code=None; GPTQ is density=1; with both, kept weights are rounded, others 0.
    damp: added to the moments' diagonal, see `inverse_factor`. block: columns chosen at once.
    keep: (out, in) bool; the others are pruned whatever their score, a part of 1 - density.
    Column j has the error e = (w_j - w^_j) / U_jj, which is subtracted from the columns behind it,
    W_k -= e U_jk, with U of `scores.inverse_factor`.  Raises: ConfigError for a setting out of
    range; ShapeError for widths; DataError for moments that cannot be inverted.
    """
    _check(weight, density, pattern, block)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    factor = inverse_factor(statistics.second_moment, damp, f"moments of inputs of {name!r}")
    factor = factor.to(weight.device, dtype)
    # (in, out): here a column of W is a row, with its numbers side by side
    w = weight.detach().to(dtype).T.clone(memory_format=torch.contiguous_format)
    w[statistics.second_moment.diagonal().to(w.device) == 0] = 0  # inputs that are always 0
    # groups of N:M must not cross the borders of blocks and strips
    step = pattern.m if isinstance(pattern, NofM) else block
    block = max(step, block // step * step)
    strip = STRIP if step == block else max(step, STRIP // step * step)
    grouped = _group_code(code, block, strip)
    mask = torch.ones_like(w, dtype=torch.bool)
    for start in range(0, len(w), block):
        stop = min(start + block, len(w))
        errors = torch.zeros_like(w[start:stop])
        for first in range(start, stop, strip):
            last = min(first + strip, stop)
            for j in range(first, last):
                if j % step == 0:
                    group = slice(j, min(j + step, stop))
                    score = w[group].square() / factor.diagonal()[group, None].square()  # eq. 5
                    outside = None if keep is None else ~keep.T[group]
                    mask[group] = _choose(score, density, pattern, outside)
                # round column j, and take its error off the rest of the strip at once
                if grouped is not None and j % grouped.group == 0:
                    grouped.begin(w[j : j + grouped.group].T, j)
                stored = w[j] if code is None else code(w[j].clone(), j).to(dtype)
                stored = stored.masked_fill(~mask[j], 0)
                error = torch.div(w[j] - stored, factor[j, j], out=errors[j - start])
                w[j + 1 : last].addr_(factor[j, j + 1 : last], error, alpha=-1)
                w[j] = stored
            # off the rest of the block once a strip, and off later blocks once a block
            strip_errors = errors[first - start : last - start]
            w[last:stop].addmm_(factor[first:last, last:stop].T, strip_errors, alpha=-1)
        w[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    mask, w = mask.T.contiguous(), w.T.contiguous()
    return Partition.from_masks({name: mask.cpu()}, pattern=pattern), w.to(weight.dtype)


def _group_code(code: Code | None, block: int, strip: int) -> GroupCode | None:
    """Return `code` if it rounds columns in groups, None otherwise."""
    if not isinstance(code, GroupCode):
        return None
    if block % code.group or (strip % code.group and code.group % strip):
        want = f"a divisor of {strip}, or of {block} and a multiple of {strip}"
        raise ConfigError("group of a code", got=code.group, want=want, fix="Try 16 or 64.")
    return code


def _choose(score: Tensor, density: float, pattern: Pattern, outside: Tensor | None) -> Tensor:
    """Choose which weights of a group of columns to keep: (out, columns) bool."""
    # score: (columns, out), higher is kept; outside: weights that are never kept
    if outside is not None:
        score = score.masked_fill(outside, -1)
    mask = _largest(score.T, density, pattern).T
    return mask if outside is None else mask & ~outside


def _largest(score: Tensor, density: float, pattern: Pattern) -> Tensor:
    """Return the mask of the largest scores (out, columns) under a pattern."""
    # only m columns are passed; each row keeps n of them
    if isinstance(pattern, NofM):
        return largest(score, pattern.n)
    if density == 1:
        return torch.ones_like(score, dtype=torch.bool)
    # (..., groups, weights of one), each group is kept or not as a whole
    groups = score[..., None] if pattern is None else pattern.groups(score)
    sums = groups.sum(-1).flatten()
    mask = largest(sums, round(density * len(sums))).view(groups.shape[:-1])
    block_mask = mask[..., None].expand(groups.shape)
    return mask if pattern is None else pattern.restored(block_mask, score.shape)


def _check(weight: Tensor, density: float, pattern: Pattern, block: int) -> None:
    """Raise ConfigError or ShapeError for an impossible setting of `choose_and_compensate`."""
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
