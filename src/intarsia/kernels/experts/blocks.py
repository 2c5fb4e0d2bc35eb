"""The layout of sorted pairs in blocks that one product computes, and their sums by token."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dense
from .rows import by_expert

# rows of an expert up to which products wait for the weights, so that a kernel reads each expert's
# weights once, or rows of zeros cost nothing, and rows in all, over pairs, that may then be
FEW, SPARE = 16, 6
# rows of an expert up to which `dense.grouped` is faster than torch with the rows of zeros it needs
UNPADDED = 32
# the same for products that are slow to share a single matrix among a processor's cores
SOME, SHARE = 128, 1.5
TOGETHER = 8
# bytes from which NumPy asks Linux for pages of 2 MiB
LARGE = 1 << 22


def roomy(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return an uninitialised tensor, on the CPU in large memory pages if it is large.

    The first writing of 100 MB is up to five times as fast as in pages of 4 KiB, because each page
    interrupts it.
    """
    nbytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or nbytes < LARGE:
        return like.new_empty(shape)
    # aligned memory in large pages, as NumPy gets it from the system
    raw = torch.from_numpy(np.empty(nbytes + 64, np.uint8))
    start = -raw.data_ptr() % 64  # the rows of a product begin where a cache line does
    return raw[start : start + nbytes].view(like.dtype).view(shape)


@dataclass(frozen=True)
class Block:
    """Consecutive experts with products in one call.

    rows_each: rows of every expert, zeros among them; 0 where each has its own number, `loads`,
    for the kernel of a few rows.
    """

    experts: slice
    rows: slice
    rows_each: int
    loads: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return self.experts.stop - self.experts.start

    def expert_rows(self) -> Iterator[tuple[int, slice]]:
        """Yield for each expert with rows its number in the block, and the slice of its rows."""
        end = 0
        for i, count in enumerate(self.loads or [self.rows_each] * self.count):
            begin, end = end, end + count
            if count:
                yield i, slice(begin, end)

    def products(self, x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
        """Multiply each row by its expert's matrix, and write the products into `out`; return it.

        x: (n, i), the rows of the block's experts, one expert after the other: `rows_each` rows of
          each, or `loads` of them; weight: (count, i, o), a matrix for each expert; out: (n, o);
          add: add to `out` instead of writing.
        """
        transposed = weight.transpose(1, 2)
        if self.loads and not add and transposed.is_contiguous():
            return dense.grouped(x, transposed, self.loads, out)
        if self.loads or self.count == 1:
            for i, rows in self.expert_rows():
                torch.addmm(out[rows], x[rows], weight[i], beta=int(add), out=out[rows])
            return out
        if not self.rows_each:
            return out
        x, y = (t.view(self.count, self.rows_each, -1) for t in (x, out))
        # W x^T is up to twice as fast as x W^T where W^T lies in rows
        turned = self.rows_each <= FEW and x.dtype == torch.float32 and weight.stride(1) == 1
        if add:
            torch.baddbmm(y, x, weight, out=y)
        elif turned:
            y.copy_(torch.bmm(weight.transpose(1, 2), x.transpose(1, 2)).transpose(1, 2))
        else:
            torch.bmm(x, weight, out=y)
        return out

    def outer(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """Write the sum of the outer products of each expert's rows, a_e^T b_e, into `out`.

        a: (n, i), b: (n, o), the rows of the block's experts, one expert after the other; out:
          (count, i, o), a matrix for each expert e, 0 for one without rows.
        """
        if self.loads or self.count == 1:
            busy = dict(self.expert_rows())
            for i, weight in enumerate(out):
                if i in busy:
                    torch.mm(a[busy[i]].t(), b[busy[i]], out=weight)
                else:
                    weight.zero_()
        elif not self.rows_each:
            out.zero_()
        else:
            a, b = (t.view(self.count, self.rows_each, -1) for t in (a, b))
            torch.bmm(a.transpose(1, 2), b, out=out)


def blocks(load: list[int], kernel: bool = False) -> tuple[Block, ...]:
    """Divide the experts into blocks; each block is multiplied by one call.

    kernel: `TOGETHER` neighbours with up to `UNPADDED` rows each, and those next to them, are a
    block without rows of zeros, with products that `dense.grouped` computes.
    In any other block of several experts all have as many rows as the largest, filled up with rows
    of zeros: all experts are such a block if all have few rows, or TOGETHER neighbours if few zeros
    are added. The remaining experts are a block each. Returns the blocks in the order of the
    experts.
    """
    result: list[Block] = []
    neighbours = [load[first : first + TOGETHER] for first in range(0, len(load), TOGETHER)]
    for is_small, group in itertools.groupby(
        neighbours, lambda part: kernel and max(part) <= UNPADDED
    ):
        part = tuple(itertools.chain.from_iterable(group))
        for count, rows, loads in [(len(part), 0, part)] if is_small else _equal_rows(part):
            begin = result[-1].experts.stop if result else 0
            row = result[-1].rows.stop if result else 0
            end = row + count * rows + sum(loads)
            result.append(Block(slice(begin, begin + count), slice(row, end), rows, loads))
    return tuple(result)


def _equal_rows(load: tuple[int, ...]) -> Iterator[tuple[int, int, tuple[()]]]:
    """Divide experts into blocks of equally many rows; yield (experts, rows of each, ())."""
    # one batched product pays for some rows of zeros, but not for many
    all_small = max(load) <= FEW and len(load) * max(load) <= SPARE * sum(load)
    step = len(load) if all_small else TOGETHER
    for first in range(0, len(load), step):
        part = load[first : first + step]
        largest = max(part)
        together = all_small or (largest <= SOME and len(part) * largest <= SHARE * sum(part))
        if together:
            yield len(part), largest, ()
        else:
            yield from ((1, n, ()) for n in part)


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
    def of(
        cls, token: Tensor, expert: Tensor, tokens: int, experts: int, kernel: bool = False
    ) -> Layout:
        """Sort pairs by expert and give each its row among the blocks.

        token, expert: (N,) int64, the numbers of each pair's token and expert; tokens: T; experts:
          E; kernel: True if `dense.grouped` may multiply experts with few rows, see `blocks`.
        """
        pairs = by_expert(expert, experts)
        order, load = pairs.order, pairs.load
        parts = blocks(load.tolist(), kernel)
        row_counts = [n for b in parts for n in (b.loads or [b.rows_each] * b.count)]
        first = [0, *itertools.accumulate(row_counts[:-1])]
        # how far the pairs of an expert are moved by the rows of zeros before them
        moved = (torch.tensor(first) - (pairs.ends - load))[pairs.expert]
        # `order` lists pairs by expert: scatter gives each pair its row
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) + moved)
        return cls(token, place, tokens, parts[-1].rows.stop, parts)

    @cached_property
    def source(self) -> Tensor:
        """The token of each row, T for a row of zeros.  Returns (rows,) int64."""
        return self.token.new_full((self.rows,), self.tokens).scatter_(0, self.place, self.token)

    def spread(self, weight: Tensor) -> Tensor:
        """Move one number of each pair, (N,), to its row, (rows,), with 0 in rows of zeros."""
        return weight.new_zeros(self.rows).scatter_(0, self.place, weight)

    def padded(self, x: Tensor) -> Tensor:
        """Append a row of zeros to x (T, d) if `source` reads one."""
        has_padding = self.rows > len(self.token)
        return torch.cat([x, x.new_zeros(1, x.shape[1])]) if has_padding else x

    def sums(self, outputs: Tensor, weight: Tensor | None) -> Tensor:
        """Sum the rows of each token's pairs, each times the pair's weight.  -> (T, out).

        outputs: (rows, out), by expert, as the layout orders them; weight: (N,), of each pair; None
          = 1.
        """
        if not self.tokens or not len(self.token):
            return outputs.new_zeros(self.tokens, outputs.shape[1])
        token, place = self.token, self.place
        # embedding_bag sums consecutive bags, so that pairs must be in the order of tokens
        if not bool((token[1:] >= token[:-1]).all()):
            token, order = token.sort(stable=True)
            place, weight = place[order], None if weight is None else weight[order]
        # each token's rows are one bag
        count = torch.bincount(token, minlength=self.tokens)
        return F.embedding_bag(
            place, outputs, count.cumsum(0) - count, mode="sum", per_sample_weights=weight
        )
