"""What a layer's inputs or outputs were like: sums, squares and second moments of channels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import ShapeError


@dataclass(frozen=True)
class Statistics:
    """Sums over rows x (N, d): count N, total sum x, squares sum x^2, hessian sum x x^T or None.

    total, squares: (d,), hessian: (d, d), all float64 on the CPU. Two of them add up to those of
    both sets of rows, so that batches and processes can be joined in any order, up to rounding.

    Raises: ShapeError for a sum of statistics of other widths, or where one has no hessian.
    """

    count: int
    total: Tensor
    squares: Tensor
    hessian: Tensor | None = None

    @classmethod
    def none(cls, width: int, *, hessian: bool = False) -> Statistics:
        """Those of no rows."""
        zero = torch.zeros(width, dtype=torch.float64)
        return cls(0, zero, zero, torch.zeros(width, width, dtype=zero.dtype) if hessian else None)

    @classmethod
    def of(cls, rows: Tensor, *, hessian: bool = False) -> Statistics:
        """Those of one batch.  rows: (N, d)."""
        x = rows.detach().double()
        second = (x.T @ x).cpu() if hessian else None
        return cls(len(x), x.sum(0).cpu(), x.square().sum(0).cpu(), second)

    def __add__(self, other: Statistics) -> Statistics:
        one, two = self.hessian, other.hessian
        if self.total.shape != other.total.shape or (one is None) != (two is None):
            raise ShapeError(
                "statistics to join",
                got=f"widths {len(self.total)} and {len(other.total)}, hessian "
                f"{one is not None} and {two is not None}",
                want="those of one layer, collected alike",
                fix="Join what `observing` found for the same layer.",
            )
        return Statistics(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            None if one is None or two is None else one + two,
        )

    @property
    def mean(self) -> Tensor:
        """Of each channel, (d,); 0 for no rows."""
        return self.total / max(1, self.count)

    @property
    def mean_square(self) -> Tensor:
        """Of each channel, (d,); its root is what Wanda multiplies a weight by."""
        return self.squares / max(1, self.count)

    @property
    def variance(self) -> Tensor:
        """Of each channel, (d,), over the rows seen (no correction)."""
        return (self.mean_square - self.mean.square()).clamp_min(0)


@dataclass
class Observed:
    """found: what each layer saw so far, by name; mask: (B, T) bool, False = padding.

    Set the mask before each forward that has one, and None before each that has none. A layer whose
    input has other leading axes than the mask counts all its rows.
    """

    found: dict[str, Statistics] = field(default_factory=lambda: dict[str, Statistics]())
    mask: Tensor | None = None


@contextmanager
def observing(
    layers: Mapping[str, nn.Module],
    *,
    outputs: Collection[str] = (),
    hessian: bool = False,
) -> Iterator[Observed]:
    """Inside, every forward of these layers is counted; their hooks are gone afterwards.

    with observing({"fc1": model.fc1}) as seen:
        for batch in batches:
            model(batch)
    seen.found["fc1"].mean_square

    Of a layer's input (..., d) the last axis is the channels, of a convolution's the second.
    outputs: names of the layers whose output is counted in place of their input.
    hessian: d^2 numbers for each layer, and N d^2 products. A layer that no forward reaches is not
    in `found`.
    """
    seen = Observed()
    hooks = [
        module.register_forward_hook(partial(_count, seen, name, name in outputs, hessian))
        for name, module in layers.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _count(
    seen: Observed, name: str, output: bool, hessian: bool, module: nn.Module, args: Any, y: Any
) -> None:
    x: Tensor = y if output else args[0]
    x = x.movedim(1, -1) if isinstance(module, nn.modules.conv._ConvNd) else x
    masked = seen.mask is not None and seen.mask.shape == x.shape[:-1]
    rows = x[seen.mask.to(x.device)] if masked and seen.mask is not None else x.flatten(0, -2)
    new = Statistics.of(rows, hessian=hessian)
    old = seen.found.get(name)
    seen.found[name] = new if old is None else old + new
