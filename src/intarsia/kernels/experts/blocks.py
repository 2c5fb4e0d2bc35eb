"""Where sorted pairs stand in blocks that one product computes, and how they add up again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .rows import by_expert

# rows of an expert up to which products wait for the weights, so that rows of zeros cost nothing,
# and rows in all, over pairs, that may then be
FEW, SPARE = 16, 6
# the same for products that are slow to share a single matrix among a processor's cores
SOME, SHARE = 128, 1.5
TOGETHER = 8
# bytes from which NumPy asks Linux for pages of 2 MiB
LARGE = 1 << 22


def roomy(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An uninitialised tensor on the CPU, a large one in large pages where the system has them.

    The first writing of 100 MB is up to five times as fast as in pages of 4 KiB, each of which
    interrupts it.
    """
    nbytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or nbytes < LARGE:
        return like.new_empty(shape)
    raw = torch.from_numpy(np.empty(nbytes + 64, np.uint8))
    start = -raw.data_ptr() % 64  # the rows of a product begin where a cache line does
    return raw[start : start + nbytes].view(like.dtype).view(shape)


@dataclass(frozen=True)
class Block:
    """Consecutive experts with `each` rows, so that a product of all is one call."""

    experts: slice
    rows: slice
    each: int

    @property
    def count(self) -> int:
        return self.experts.stop - self.experts.start

    def products(self, x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
        """x_n W_e into `out`, or added to it.  x: (n, i), weight: (count, i, o) -> (n, o)."""
        if not self.each:
            return out
        if self.count == 1:
            return torch.addmm(out, x, weight[0], beta=int(add), out=out)
        x, y = (t.view(self.count, self.each, -1) for t in (x, out))
        # W x^T is up to twice as fast as x W^T where W^T lies in rows
        turned = self.each <= FEW and x.dtype == torch.float32 and weight.stride(1) == 1
        if add:
            torch.baddbmm(y, x, weight, out=y)
        elif turned:
            y.copy_(torch.bmm(weight.transpose(1, 2), x.transpose(1, 2)).transpose(1, 2))
        else:
            torch.bmm(x, weight, out=y)
        return out

    def outer(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """a_e^T b_e over each expert's rows, into `out`.  (n, i), (n, o) -> (count, i, o)."""
        if not self.each:
            out.zero_()
        elif self.count == 1:
            torch.mm(a.t(), b, out=out[0])
        else:
            a, b = (t.view(self.count, self.each, -1) for t in (a, b))
            torch.bmm(a.transpose(1, 2), b, out=out)


def blocks(load: list[int]) -> tuple[Block, ...]:
    """Experts that have few or about as many rows go together.  load: of each expert.

    Where all have few, all do; a few neighbours where `TOGETHER` times the most is not much more
    than they have.
    """
    few = max(load) <= FEW and len(load) * max(load) <= SPARE * sum(load)
    found: list[Block] = []
    step, row = len(load) if few else TOGETHER, 0
    for first in range(0, len(load), step):
        part = load[first : first + step]
        most = max(part)
        whole = few or (most <= SOME and len(part) * most <= SHARE * sum(part))
        for count, each in [(len(part), most)] if whole else [(1, n) for n in part]:
            begin = found[-1].experts.stop if found else 0
            experts, end = slice(begin, begin + count), row + count * each
            found.append(Block(experts, slice(row, end), each))
            row = end
    return tuple(found)


@dataclass(frozen=True)
class Layout:
    """The pairs of a routing in rows, by expert, with rows of zeros between them in some blocks.

    token, place: (N,) int64, the token and the row of each pair, in the order of the routing;
    rows: how many in all.
    """

    token: Tensor
    place: Tensor
    tokens: int
    rows: int
    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, token: Tensor, expert: Tensor, tokens: int, experts: int) -> Layout:
        pairs = by_expert(expert, experts)
        order, load = pairs.order, pairs.load
        found = blocks(load.tolist())
        first = [b.rows.start + i * b.each for b in found for i in range(b.count)]
        # how far the pairs of an expert are moved by the rows of zeros before them
        moved = (torch.tensor(first) - (pairs.ends - load))[pairs.expert]
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) + moved)
        return cls(token, place, tokens, found[-1].rows.stop, found)

    @cached_property
    def source(self) -> Tensor:
        """The token of each row, T for a row of zeros.  Returns (rows,) int64."""
        return self.token.new_full((self.rows,), self.tokens).scatter_(0, self.place, self.token)

    def spread(self, weight: Tensor) -> Tensor:
        """Numbers of the pairs (N,) as those of their rows (rows,), 0 for a row of zeros."""
        return weight.new_zeros(self.rows).scatter_(0, self.place, weight)

    def padded(self, x: Tensor) -> Tensor:
        """What `source` counts in: x, and a row of zeros if it is asked for."""
        more = self.rows > len(self.token)
        return torch.cat([x, x.new_zeros(1, x.shape[1])]) if more else x

    def sums(self, made: Tensor, weight: Tensor | None) -> Tensor:
        """sum of made's rows by token, each times its pair's weight.  (rows, out) -> (T, out)."""
        if not self.tokens or not len(self.token):
            return made.new_zeros(self.tokens, made.shape[1])
        token, place = self.token, self.place
        if not bool((token[1:] >= token[:-1]).all()):
            token, order = token.sort(stable=True)
            place, weight = place[order], None if weight is None else weight[order]
        count = torch.bincount(token, minlength=self.tokens)
        return F.embedding_bag(
            place, made, count.cumsum(0) - count, mode="sum", per_sample_weights=weight
        )
