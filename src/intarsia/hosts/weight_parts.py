"""Parts of a model's weights that are trained, while every other number keeps its bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightParts:
    """Trained rows of stacked weights, or whole weights, as parameters of their own.

    chosen: (parameter, row), row None = all of it. An optimiser gets `leaves`, copies in float32 or
    wider, and never the stacked weight, so that neither weight decay nor rounding reaches another
    row. Between `begin` and `end` nothing else of the model has gradients.
    """

    def __init__(self, model: nn.Module, parts: Sequence[tuple[nn.Parameter, int | None]]) -> None:
        """Copy the rows that are trained, None = a whole parameter, to parameters of their own."""
        self.model, self.chosen = model, list(parts)
        self.first = [self._row(p, row).detach().clone() for p, row in self.chosen]
        # in float32: a small step would be rounded away in half precision
        self.leaves = [
            nn.Parameter(w.to(torch.promote_types(w.dtype, torch.float32), copy=True))
            for w in self.first
        ]
        self.asked: dict[nn.Parameter, bool] = {}

    @property
    def count(self) -> int:
        """Number of weights that are trained."""
        return sum(leaf.numel() for leaf in self.leaves)

    def begin(self) -> None:
        """Switch gradients on for the chosen weights alone, and remember the flags of all."""
        self.asked = {p: p.requires_grad for p in self.model.parameters()}
        # a stacked weight gets its gradient as a whole; `gradients` takes the chosen rows out of it
        mine = {p for p, _ in self.chosen}
        for p in self.asked:
            p.requires_grad_(p in mine)

    def end(self) -> None:
        """Restore the flags of `begin`."""
        for p, flag in self.asked.items():
            p.requires_grad_(flag)

    def gradients(self, loss: Tensor) -> None:
        """Compute the gradient of a loss for each trained row or weight (`leaf.grad`).

        It is 0 if the loss does not depend on it.
        """
        # several rows of one weight share its gradient, which is computed once
        weights = list(dict.fromkeys(p for p, _ in self.chosen))
        grads = torch.autograd.grad(loss, weights, allow_unused=True)
        gradient_of = dict(zip(weights, grads, strict=True))
        for leaf, (p, row) in zip(self.leaves, self.chosen, strict=True):
            grad = gradient_of[p]
            leaf.grad = torch.zeros_like(leaf) if grad is None else self._row(grad, row).to(leaf)

    def put(self) -> None:
        """Write the trained values of the leaves into the model."""
        self._write(self.leaves)

    def restore(self) -> None:
        """Write the values that the weights had at the start into the model."""
        self._write(self.first)

    @contextmanager
    def before(self) -> Iterator[None]:
        """Give the model its weights of the start, inside the `with`, then the trained ones."""
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
    def _row(tensor: Tensor, row: int | None) -> Tensor:
        """Return one row of a stacked tensor, or all of it for None."""
        return tensor if row is None else tensor[row]
