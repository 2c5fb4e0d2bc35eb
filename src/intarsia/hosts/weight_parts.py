"""Parts of a model's weights that are trained, while every other number keeps its bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightParts:
    """Rows of stacked weights, or whole weights, as leaves of their own for an optimiser.

    chosen: (parameter, row), row None = all of it. The leaves are float32 or wider copies: an
    optimiser never sees the stacked weight, so that neither weight decay nor rounding reaches
    another row.  Between `begin` and `end` nothing else of the model has gradients.
    """

    def __init__(self, model: nn.Module, chosen: Sequence[tuple[nn.Parameter, int | None]]) -> None:
        self.model, self.chosen = model, list(chosen)
        self.first = [self._row(p, row).detach().clone() for p, row in self.chosen]
        self.leaves = [
            nn.Parameter(w.to(torch.promote_types(w.dtype, torch.float32), copy=True))
            for w in self.first
        ]
        self.asked: dict[nn.Parameter, bool] = {}

    @property
    def count(self) -> int:
        """How many numbers are trained."""
        return sum(leaf.numel() for leaf in self.leaves)

    def begin(self) -> None:
        self.asked = {p: p.requires_grad for p in self.model.parameters()}
        mine = {p for p, _ in self.chosen}
        for p in self.asked:
            p.requires_grad_(p in mine)

    def end(self) -> None:
        for p, asked in self.asked.items():
            p.requires_grad_(asked)

    def gradients(self, loss: Tensor) -> None:
        """Each leaf's gradient of a loss; 0 where the loss does not read it."""
        whole = list(dict.fromkeys(p for p, _ in self.chosen))
        found = torch.autograd.grad(loss, whole, allow_unused=True)
        by = dict(zip(whole, found, strict=True))
        for leaf, (p, row) in zip(self.leaves, self.chosen, strict=True):
            grad = by[p]
            leaf.grad = torch.zeros_like(leaf) if grad is None else self._row(grad, row).to(leaf)

    def put(self) -> None:
        """Write the leaves into the model."""
        self._write(self.leaves)

    def restore(self) -> None:
        """Write what was there at first."""
        self._write(self.first)

    @contextmanager
    def before(self) -> Iterator[None]:
        """Inside, the model has the weights that it had at first."""
        self.restore()
        try:
            yield
        finally:
            self.put()

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        for value, (p, row) in zip(values, self.chosen, strict=True):
            self._row(p, row).copy_(value)

    @staticmethod
    def _row(of: Tensor, row: int | None) -> Tensor:
        return of if row is None else of[row]
