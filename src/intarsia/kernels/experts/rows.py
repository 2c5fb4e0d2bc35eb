"""Rows to their experts and back, for experts that are any functions of rows.

Pairs of a token and an expert are sorted by expert in one place, `by_expert`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Weighted = Callable[[Tensor, Tensor], Tensor]  # rows (M, d), weights (M,) -> weighted rows (M, out)


class Sorted(NamedTuple):
    """Pairs sorted by expert.

    expert: (N,), rising; order: (N,), the place of each before; ends: (E,) int32, where the pairs
    of each expert end.
    """

    expert: Tensor
    order: Tensor
    ends: Tensor

    @property
    def load(self) -> Tensor:
        """The number of pairs of each expert, (E,) int64."""
        return self.ends.diff(prepend=self.ends.new_zeros(1)).long()


def by_expert(expert: Tensor, experts: int) -> Sorted:
    """Sort pairs by expert; pairs of one expert keep their order.

    expert: (N,) int64, the expert of each pair; experts: E. Returns the sorted experts (N,), the
    earlier place of each pair (N,), and where the pairs of each expert end (E,).
    """
    expert, order = expert.sort(stable=True)
    return Sorted(expert, order, ends_of(expert, experts))


def ends_of(expert: Tensor, experts: int) -> Tensor:
    """Return where the rows of each of E experts end, (E,) int32; expert: (N,), rising."""
    numbers = torch.arange(experts, device=expert.device)
    return torch.searchsorted(expert, numbers, right=True, out_int32=True)


class GatherRows(torch.autograd.Function):
    """x, and its rows at `token`.  A chain of these on x has one buffer for the gradient of x.

    Rows are taken when they are needed and are gone before the next ones, so that a large x is
    never copied whole; an index_select for each expert would make a gradient of x for each.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Return x again, and its rows at `token`, (M, d).

        x: (T, d); token: (M,) int64, numbers of rows. The next call takes the x that this one
          returns: in such a chain all gradients of x share one buffer.
        """
        ctx.save_for_backward(token)
        ctx.length = len(x)
        ctx.set_materialize_grads(False)
        return x.view_as(x), x.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None]:
        """Return the gradient of x: the gradient of the returned x plus the rows' gradients."""
        rest, rows = grads
        if rows is None:
            return rest, None
        (token,) = ctx.saved_tensors
        # add into the buffer that the chain passes on, instead of a gradient of x each time
        total = rows.new_zeros(ctx.length, *rows.shape[1:]) if rest is None else rest
        return total.index_add_(0, token, rows), None


@dataclass(frozen=True)
class Slices:
    """The pairs by expert: tokens and weights, (M_e,) of each."""

    tokens: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]

    def rows(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the rows of each expert's tokens, (M_e, d), one expert after the other."""
        for token in self.tokens:
            x, rows = GatherRows.apply(x, token)
            yield rows

    def add(self, y: Tensor, e: int, expert: Weighted, rows: Tensor) -> None:
        """Add an expert's weighted output for its rows to the output of all tokens, in place.

        y: (T, out), of all tokens, changed; expert: its function: rows and a weight for each ->
          weighted outputs; rows: (M_e, d), the rows of its M_e tokens.
        """
        y.index_add_(0, self.tokens[e], expert(rows, self.weights[e]).to(y.dtype))

    def idle(self, tokens: int) -> Tensor | slice:
        """Return the tokens that have no expert, (n,) int64.  tokens: T, the number of all."""
        has_expert = torch.zeros(tokens, dtype=torch.bool, device=self.tokens[0].device)
        for token in self.tokens:
            has_expert[token] = True
        return has_expert.logical_not().nonzero()[:, 0]


@dataclass(frozen=True)
class AllTokens:
    """`Slices` in which each expert has all tokens, most of them with weight 0.

    For graphs, where shapes cannot depend on where tokens go: time grows with T times E.
    """

    weights: tuple[Tensor, ...]

    def rows(self, x: Tensor) -> Iterator[Tensor]:
        return (x for _ in self.weights)

    def add(self, y: Tensor, e: int, expert: Weighted, rows: Tensor) -> None:
        """Add an expert's weighted output for all rows to y (T, out), in place; most weights are 0.

        expert: its function: rows and a weight for each -> weighted outputs; rows: (T, d).
        """
        y.add_(expert(rows, self.weights[e]).to(y.dtype))

    def idle(self, tokens: int) -> Tensor | slice:
        """Return all tokens, as a graph does not know which have no expert.  tokens: unused."""
        return slice(None)


PairsByExpert = Slices | AllTokens


def group_pairs(
    token: Tensor, expert: Tensor, weight: Tensor, tokens: int, experts: int
) -> PairsByExpert:
    """Group the pairs (token, expert) by expert; in a graph, give each expert all tokens.

    token, expert, weight: (N,), of each pair; tokens: T; experts: E.
    """
    # a graph's shapes cannot depend on the routing: every expert gets every token
    if token.is_meta or torch.compiler.is_compiling():
        gates = weight.new_zeros(tokens * experts).index_add(0, token * experts + expert, weight)
        return AllTokens(gates.view(tokens, experts).unbind(1))
    pairs = by_expert(expert, experts)
    sizes: list[int] = pairs.load.tolist()  # the one wait for the device
    return Slices(token[pairs.order].split(sizes), weight[pairs.order].split(sizes))


def add_mix(pairs: PairsByExpert, x: Tensor, *into: tuple[Tensor, Sequence[Weighted]]) -> None:
    """Add sum_e G_te expert_e(x_t) to y_t, in place, for one or several groups of experts.

    pairs: the non-zero weights G_te of token t for expert e, as `group_pairs` returns them; x: (T,
      d); into: for each group (y, experts), y (T, out) and the E experts with weighted outputs that
      are added to it. Expert by expert, so that results stay in a processor's cache. An expert
      without rows is called too: its gradient is then 0, and data-parallel processes do not wait
      for it.
    """
    for e, rows in enumerate(pairs.rows(x)):
        for y, experts in into:
            pairs.add(y, e, experts[e], rows)
