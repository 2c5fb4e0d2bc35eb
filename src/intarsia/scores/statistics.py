"""What a layer's inputs or outputs were like: sums, squares and second moments of channels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import add
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.errors import ConfigError, ShapeError

NEEDS = frozenset({"mean", "square", "hessian"})
SUMS = frozenset({"mean", "square"})
ROWS = 1024  # that are multiplied in float32 before they are added up in float64


@dataclass(frozen=True)
class Statistics:
    """Sums over rows x (N, d): count N, total sum x, squares sum x^2, hessian sum x x^T.

    total, squares, deviations sum (x - mean)^2: (d,), hessian: (d, d), all float64 on the CPU; None
    = not collected. Two of them add up to those of both sets of rows, so that batches and processes
    can be joined in any order, up to rounding; deviations by Chan, Golub and LeVeque (1979).

    Raises: ShapeError for a sum of statistics of other widths, or not collected alike; ConfigError
    where one is read that was not collected.
    """

    count: int
    total: Tensor | None
    squares: Tensor | None
    hessian: Tensor | None = None
    deviations: Tensor | None = None

    @classmethod
    def none(
        cls, width: int, *, hessian: bool = False, needs: Collection[str] = SUMS
    ) -> Statistics:
        """Those of no rows."""
        return cls.of(torch.zeros(0, width), hessian=hessian, needs=needs)

    @classmethod
    def of(
        cls, rows: Tensor, *, hessian: bool = False, needs: Collection[str] = SUMS
    ) -> Statistics:
        """Those of one batch.  rows: (N, d).

        needs: of "mean" (with the variance), "square" and "hessian", which `hessian` adds.
        Squares and products are float32 for float32 rows, 1,024 of them at a time.
        """
        x = rows.detach()
        x = x if x.dtype == torch.float64 else x.float()
        parts = x.split(ROWS)
        total = squares = second = spread = None
        if "mean" in needs:
            total = x.sum(0, dtype=torch.float64)
            middle = total / max(1, len(x))
            spread = _summed([(c - middle.to(c)).square() for c in parts])
        if "square" in needs:
            squares = _summed([c * c for c in parts])
        if hessian or "hessian" in needs:
            second = _joined([c.T @ c for c in parts])
        return cls(len(x), *(t if t is None else t.cpu() for t in (total, squares, second, spread)))

    @property
    def collected(self) -> frozenset[str]:
        """Which of "mean", "square" and "hessian" there are."""
        there = {"mean": self.total, "square": self.squares, "hessian": self.hessian}
        return frozenset(name for name, value in there.items() if value is not None)

    @property
    def width(self) -> int | None:
        """The number of channels; None where nothing was collected."""
        there = (t for t in (self.total, self.squares, self.hessian) if t is not None)
        return next((len(t) for t in there), None)

    def __add__(self, other: Statistics) -> Statistics:
        if self.width != other.width or self.collected != other.collected:
            raise ShapeError(
                "statistics to join",
                got=f"widths {self.width} and {other.width}, "
                f"{sorted(self.collected)} and {sorted(other.collected)}",
                want="those of one layer, collected alike",
                fix="Join what `observing` found for the same layer.",
            )
        spread = _plus(self.deviations, other.deviations)
        if spread is not None:
            share = self.count * other.count / max(1, self.count + other.count)
            spread = spread + (other.mean - self.mean).square() * share
        return Statistics(
            self.count + other.count,
            _plus(self.total, other.total),
            _plus(self.squares, other.squares),
            _plus(self.hessian, other.hessian),
            spread,
        )

    @property
    def mean(self) -> Tensor:
        """Of each channel, (d,); 0 for no rows."""
        return self._read("mean", self.total) / max(1, self.count)

    @property
    def mean_square(self) -> Tensor:
        """Of each channel, (d,); its root is what Wanda multiplies a weight by."""
        return self._read("square", self.squares) / max(1, self.count)

    @property
    def variance(self) -> Tensor:
        """Of each channel, (d,), over the rows seen (no correction)."""
        return self._read("mean", self.deviations) / max(1, self.count)

    @property
    def second_moment(self) -> Tensor:
        """mean x x^T, (d, d)."""
        return self._read("hessian", self.hessian) / max(1, self.count)

    def _read(self, name: str, value: Tensor | None) -> Tensor:
        if value is None:
            what, fix = "statistics", f"Collect it: needs={{{name!r}}}."
            raise ConfigError(what, got=f"no {name!r}", want=f"{name!r} collected", fix=fix)
        return value


def _joined(parts: list[Tensor]) -> Tensor:
    return reduce(add, (part.double() for part in parts))


def _summed(parts: list[Tensor]) -> Tensor:
    return _joined([part.sum(0) for part in parts])


def _plus(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    return None if one is None or two is None else one + two


@dataclass
class Observed:
    """found: what each layer saw so far, by name; mask: (B, T) bool, False = padding.

    Set the mask before each forward that has one, and None before each that has none. A layer whose
    input has other leading axes than the mask counts all its rows. Layers that are given the same
    tensor one after the other, as the projections of an attention are, share one pass over it.
    """

    found: dict[str, Statistics] = field(default_factory=lambda: dict[str, Statistics]())
    mask: Tensor | None = None
    last: tuple[Tensor, Any, Statistics] | None = None  # an input, and what it gave

    def add(self, name: str, new: Statistics) -> None:
        """Count some rows of a layer."""
        old = self.found.get(name)
        self.found[name] = new if old is None else old + new


@contextmanager
def observing(
    layers: Mapping[str, nn.Module],
    *,
    outputs: Collection[str] = (),
    hessian: bool = False,
    needs: Collection[str] = SUMS,
    unfolded: bool = False,
) -> Iterator[Observed]:
    """Inside, every forward of these layers is counted; their hooks are gone afterwards.

    with observing({"fc1": model.fc1}) as seen:
        for batch in batches:
            model(batch)
    seen.found["fc1"].mean_square

    Of a layer's input (..., d) the last axis is the channels, of a convolution's the second.
    outputs: names of the layers whose output is counted in place of their input.
    needs: what is collected, see `Statistics.of`.  hessian: adds "hessian" to it: d^2 numbers for
    each layer, and N d^2 products. A layer that no forward reaches is not in `found`.
    unfolded: the channels of a convolution that is not 1x1 are the (channel, row, column) of what
    its kernel covers, as its weight's `flatten(1)` has them, and a place of its output is a row.
    """
    wanted = frozenset(needs) | ({"hessian"} if hessian else frozenset())
    seen = Observed()
    hooks = [
        module.register_forward_hook(partial(_count, seen, name, name in outputs, wanted, unfolded))
        for name, module in layers.items()
    ]
    try:
        yield seen
    finally:
        seen.last = None
        for hook in hooks:
            hook.remove()


def of_all_processes(found: Mapping[str, Statistics]) -> dict[str, Statistics]:
    """What all processes saw, layer by layer, added up in the order of the ranks: equal on all."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return dict(found)
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, dict(found))
    joined: dict[str, Statistics] = {}
    for one in every:
        for name, new in one.items():
            joined[name] = joined[name] + new if name in joined else new
    return joined


def _count(
    seen: Observed,
    name: str,
    output: bool,
    needs: frozenset[str],
    unfolded: bool,
    module: nn.Module,
    args: Any,
    y: Any,
) -> None:
    given: Tensor = y if output else args[0]
    if unfolded and not output and isinstance(module, nn.Conv2d) and set(module.kernel_size) != {1}:
        for one in given.split(1):  # a patch holds kh kw as many numbers as the picture
            seen.add(name, Statistics.of(_patches(module, one, y), needs=needs))
        return
    conv = isinstance(module, nn.modules.conv._ConvNd)
    # the very tensor, not written to since
    key = (0 if given.is_inference() else given._version, id(seen.mask), conv)
    if seen.last is not None and seen.last[0] is given and seen.last[1] == key:
        new = seen.last[2]
    else:
        x = given.movedim(1, -1) if conv else given
        masked = seen.mask is not None and seen.mask.shape == x.shape[:-1]
        rows = x[seen.mask.to(x.device)] if masked and seen.mask is not None else x.flatten(0, -2)
        new = Statistics.of(rows, needs=needs)
        seen.last = given, key, new
    seen.add(name, new)


def _patches(conv: nn.Conv2d, x: Tensor, y: Tensor) -> Tensor:
    """What a kernel covers at each place of the output.  x: (1, d, H, W) -> (h w, d kh kw).

    Where the layer pads by itself, as TensorFlow's "SAME" does, the sides follow from the output's.
    """
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    sides: list[int] = []
    for axis in (1, 0):  # F.pad begins with the last one
        before = after = 0
        if isinstance(conv.padding, str) or not conv.padding[axis]:
            span = (y.shape[2 + axis] - 1) * conv.stride[axis]
            need = span + conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
            extra = max(0, need - x.shape[2 + axis])
            before, after = extra // 2, extra - extra // 2
        else:
            before = after = conv.padding[axis]
        sides += [before, after]
    padded = nn.functional.pad(x, sides, mode=mode) if any(sides) else x
    found = nn.functional.unfold(
        padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride
    )
    return found[0].T
