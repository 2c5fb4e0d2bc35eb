"""Cells with noise on their outputs or weights while they train, and none in evaluation."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core import Cell
from ..core.errors import ConfigError
from ..gating import RandomSource
from ..gating.random_source import seeded_by


class NoisyCell(Cell):
    """A cell with noise of its own. It starts with the bits that the cell has without noise.

    body: the cell.  generator: the generator of `build`, which is left where it was.
    Raises: ConfigError for a cell that computes the whole output of its site.
    """

    def __init__(self, body: Cell, generator: torch.Generator) -> None:
        super().__init__()
        if body.whole:
            got, want = type(body).__name__, "an adapter that adds to its site"
            raise ConfigError("over", got=got, want=want, fix="Use over=Bottleneck() or Lora().")
        self.body = body
        # a copy of the generator, so that whatever draws next from it gets the same numbers
        copied = torch.Generator().set_state(generator.get_state())
        self.noise = RandomSource(seeded_by(copied))

    def forward(self, x: Tensor) -> Tensor:
        return self.disturbed(x) if self.training and len(x) else self.body(x)

    @abc.abstractmethod
    def disturbed(self, x: Tensor) -> Tensor:
        """Compute the cell with its noise, in training.  (B, ..., inputs) -> (B, ..., outputs)."""

    def merged(self) -> Cell:
        return copy.deepcopy(self.body.merged())

    def delta(self) -> Tensor | None:
        return self.body.delta()


class ScaledOutput(NoisyCell):
    """(1 + sigma e) * body(x), e ~ N(0, 1) for each sample and output, the same at all tokens."""

    def __init__(self, body: Cell, sigma: float, generator: torch.Generator) -> None:
        super().__init__(body, generator)
        self.sigma = sigma

    def disturbed(self, x: Tensor) -> Tensor:
        """Compute (1 + sigma e) body(x), with e ~ N(0, 1) for each sample and output."""
        y = self.body(x)
        if not self.sigma:
            return y
        noise = self.noise.drawn(len(y), lambda rows: self.noise.normal(rows, y.shape[-1]))
        # The draw is the same at all tokens of a sample: the axes between are 1.
        factor = (1 + self.sigma * noise).to(y)
        return y * factor.view(len(y), *[1] * (y.dim() - 2), y.shape[-1])


class DroppedWeights(NoisyCell):
    """The body with weights of one projection dropped at random, for each sample separately.

    side: "down" or "up"; p: the share of its weights that is dropped.
    """

    def __init__(self, body: Any, side: str, p: float, generator: torch.Generator) -> None:
        super().__init__(body, generator)
        self.side, self.p = side, p

    def disturbed(self, x: Tensor) -> Tensor:
        """Compute the adapter with some weights of one projection 0, others for each sample."""
        if not self.p:
            return self.body(x)
        body: Any = self.body
        sides: dict[str, Callable[[Tensor], Tensor]] = {"down": body.down, "up": body.up}
        sides[self.side] = self._dropped(sides[self.side])
        return body.compute(self.cast(x), sides["down"], sides["up"])

    def _dropped(self, layer: Any) -> Callable[[Tensor], Tensor]:
        """Return a linear map as a function that sets random weights to 0, by sample."""

        # x: (B, ..., in); a weight is 0 with probability p, and divided by 1 - p otherwise
        def forward(x: Tensor) -> Tensor:
            """Apply the layer to x (B, ..., in), with a mask of its weight for each sample."""
            rows, shape = x.reshape(len(x), -1, x.shape[-1]), layer.weight.shape
            mask = self.noise.drawn(len(x), lambda n: self.noise.uniform(n, *shape) >= self.p)
            weight = layer.weight * mask.to(x.device) / (1 - self.p)  # (B, out, in)
            # one product with a weight of its own for each sample
            y = torch.bmm(rows, weight.transpose(1, 2).to(rows.dtype))
            y = y if layer.bias is None else y + layer.bias.to(y.dtype)
            return y.view(*x.shape[:-1], shape[0])

        return forward
