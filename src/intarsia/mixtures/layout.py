"""Where the pairs of a routing stand when they are sorted by expert, and how they add up again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# rows of a group up to which products wait for the weights, so that rows of zeros cost nothing
FEW = 16
# rows of zeros that may be added to each row
SPARE = 6
# elements of a block of hidden rows, which are then still in a processor's cache
BLOCK = 1 << 19
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
class Layout:
    """The pairs of a routing in rows, by expert: `each` rows an expert, or as many as it has.

    token, place: (N,) int64, the token and the row of each pair, in the order of the routing;
    sizes: how many rows each expert has; each: if they are as many for all, else 0.
    Where experts have few pairs, and about as many, rows of zeros make them as many: a product of
    all is then one call, and it waits for the weights in any case.
    """

    token: Tensor
    place: Tensor
    tokens: int
    sizes: tuple[int, ...]
    each: int

    @classmethod
    def of(cls, token: Tensor, expert: Tensor, tokens: int, experts: int) -> Layout:
        load = torch.bincount(expert, minlength=experts)
        order = expert.argsort(stable=True)
        sizes: list[int] = load.tolist()
        most = max(sizes)
        each = most if most <= FEW and experts * most <= SPARE * len(token) else 0
        row = torch.arange(len(token), device=token.device)
        if each:
            among = expert[order]
            row = row + (each * among - (load.cumsum(0) - load)[among])
            sizes = [each] * experts
        place = torch.empty_like(order).scatter_(0, order, row)
        return cls(token, place, tokens, tuple(sizes), each)

    @property
    def rows(self) -> int:
        return sum(self.sizes)

    @cached_property
    def source(self) -> Tensor:
        """The token of each row, T for a row of zeros.  Returns (rows,) int64."""
        return self.token.new_full((self.rows,), self.tokens).scatter_(0, self.place, self.token)

    def spread(self, weight: Tensor) -> Tensor:
        """Numbers of the pairs (N,) as those of their rows (rows,), 0 for a row of zeros."""
        return weight.new_zeros(self.rows).scatter_(0, self.place, weight)

    def padded(self, x: Tensor) -> Tensor:
        """What `source` counts in: x, and a row of zeros if it is asked for."""
        return torch.cat([x, x.new_zeros(1, x.shape[1])]) if self.each else x

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

    def blocks(self, width: int) -> list[Block]:
        """Consecutive experts, of few rows for their products to stay in a processor's cache.

        width: of a hidden row.
        """
        if self.each:
            return [Block(slice(0, len(self.sizes)), slice(0, self.rows), self.sizes, True)]
        found: list[Block] = []
        first = begin = end = 0
        for e, size in enumerate((*self.sizes, BLOCK)):
            if e == len(self.sizes) or (end > begin and (end + size - begin) * width > BLOCK):
                sizes = self.sizes[first:e]
                found.append(Block(slice(first, e), slice(begin, end), sizes, False))
                first, begin = e, end
            end += size
        return found


@dataclass(frozen=True)
class Block:
    """Some experts and their rows; even: as many rows for each."""

    experts: slice
    rows: slice
    sizes: tuple[int, ...]
    even: bool

    def products(self, x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
        """x_n W_e into `out`, or added to it.  x: (n, i), weight: (experts, i, o) -> (n, o)."""
        if self.even:
            x, y = (t.view(len(self.sizes), -1, t.shape[1]) for t in (x, out))
            # W x^T is up to twice as fast as x W^T where W^T lies in rows, in float32
            if x.dtype == torch.float32 and weight.stride(1) == 1 and not add:
                y.copy_(torch.bmm(weight.transpose(1, 2), x.transpose(1, 2)).transpose(1, 2))
            else:
                torch.baddbmm(y, x, weight, beta=int(add), out=y)
            return out
        for a, w, y in zip(x.split(self.sizes), weight, out.split(self.sizes), strict=True):
            if len(a):
                torch.addmm(y, a, w, beta=int(add), out=y)
        return out

    def outer(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """a_e^T b_e over each expert's rows, into `out`.  (n, i), (n, o) -> (experts, i, o)."""
        if self.even:
            a, b = (t.view(len(self.sizes), -1, t.shape[1]) for t in (a, b))
            torch.bmm(a.transpose(1, 2), b, out=out)
            return
        for x, y, z in zip(a.split(self.sizes), b.split(self.sizes), out, strict=True):
            torch.mm(x.t(), y, out=z)
