"""Rows to their experts and back: sorted by expert, each expert on its slice, added up by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Cell, Routing

Expert = Callable[[Tensor], Tensor]


class Take(torch.autograd.Function):
    """x, and its rows at `token`.  A chain of these on x has one buffer for the gradient of x.

    Rows are taken when they are needed and are gone before the next ones, so that a large x is
    never copied whole; an index_select for each expert would make a gradient of x for each.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(token)
        ctx.length = len(x)
        ctx.set_materialize_grads(False)
        return x.view_as(x), x.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None]:
        rest, rows = grads
        if rows is None:
            return rest, None
        (token,) = ctx.saved_tensors
        total = rows.new_zeros(ctx.length, *rows.shape[1:]) if rest is None else rest
        return total.index_add_(0, token, rows), None


@dataclass(frozen=True)
class Slices:
    """The pairs of a routing by expert: tokens and weights, (M_e,) of each."""

    tokens: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]

    @classmethod
    def of(cls, routing: Routing) -> Slices:
        order = routing.expert.argsort(stable=True)
        sizes: list[int] = routing.load().tolist()  # the one wait for the device
        return cls(routing.token[order].split(sizes), routing.weight[order].split(sizes))

    def rows(self, x: Tensor) -> Iterator[Tensor]:
        """Each expert's rows, one after the other.  (T, d) -> E times (M_e, d)."""
        for token in self.tokens:
            x, rows = Take.apply(x, token)
            yield rows

    def add(self, y: Tensor, e: int, expert: Expert, rows: Tensor) -> None:
        """Add what an expert makes of its rows to y, in place, by their weights."""
        weight = self.weights[e]
        if isinstance(expert, Cell):
            made = expert.weighted(rows, weight)
        else:
            made = expert(rows) * weight[:, None]
        y.index_add_(0, self.tokens[e], made.to(y.dtype))

    def add_mix(self, x: Tensor, *into: tuple[Tensor, Sequence[Expert]]) -> None:
        """y_t + sum_e G_te expert_e(x_t), in place, for each (y, experts).  x: (T, d), y: (T, out).

        Expert by expert, so that what is computed stays in a processor's cache. One without rows is
        called too: its gradient is then 0, and data-parallel ranks do not wait for it.
        """
        for e, rows in enumerate(self.rows(x)):
            for y, experts in into:
                self.add(y, e, experts[e], rows)

    def without(self, tokens: int) -> Tensor:
        """The tokens that have no expert.  Returns (n,) int64."""
        seen = torch.zeros(tokens, dtype=torch.bool, device=self.tokens[0].device)
        for token in self.tokens:
            seen[token] = True
        return seen.logical_not().nonzero()[:, 0]


def mix_naive(x: Tensor, routing: Routing, experts: Sequence[Expert]) -> Tensor:
    """The oracle of `Slices.add_mix`: every expert on every row, without y.  (T, d) -> (T, out)."""
    gates = routing.dense()
    return torch.stack([gates[:, e, None] * f(x) for e, f in enumerate(experts)]).sum(0)
