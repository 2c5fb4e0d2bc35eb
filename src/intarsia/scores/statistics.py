"""Statistics of a layer's inputs or outputs: sums, squares and second moments of channels."""

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
    = not collected. Two of them add up to the statistics of both sets of rows, so that batches and
    processes can be joined in any order, up to rounding; deviations by Chan, Golub and LeVeque
    (1979).

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
        """Return the statistics of no rows, of `width` channels.  needs, hessian: as in `of`."""
        return cls.of(torch.zeros(0, width), hessian=hessian, needs=needs)

    @classmethod
    def of(
        cls, rows: Tensor, *, hessian: bool = False, needs: Collection[str] = SUMS
    ) -> Statistics:
        """Return the statistics of one batch of vectors.

        rows: (N, d), N vectors of d channels; needs: names of the sums to collect: "mean" (the sum,
          and the squared deviations from the mean, for the variance), "square" (the sum of squares)
          and "hessian" (the sum of x x^T); by default the first two; hessian: True adds the third.
          Squares and products are float32 for float32 rows, 1,024 of them at a time.
        """
        x = rows.detach()
        x = x if x.dtype == torch.float64 else x.float()
        parts = x.split(ROWS)
        total = squares = second = spread = None
        if "mean" in needs:
            total = x.sum(0, dtype=torch.float64)
            middle = total / max(1, len(x))
            # deviations from the batch's own mean, so that no digits cancel
            spread = _sum_rows([(c - middle.to(c)).square() for c in parts])
        if "square" in needs:
            squares = _sum_rows([c * c for c in parts])
        if hessian or "hessian" in needs:
            second = _sum_tensors([c.T @ c for c in parts])
        return cls(len(x), *(t if t is None else t.cpu() for t in (total, squares, second, spread)))

    @property
    def collected(self) -> frozenset[str]:
        """The names among "mean", "square" and "hessian" that were collected."""
        values = {"mean": self.total, "square": self.squares, "hessian": self.hessian}
        return frozenset(name for name, value in values.items() if value is not None)

    @property
    def width(self) -> int | None:
        """The number of channels; None where nothing was collected."""
        tensors = (t for t in (self.total, self.squares, self.hessian) if t is not None)
        return next((len(t) for t in tensors), None)

    def __add__(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of rows together."""
        if self.width != other.width or self.collected != other.collected:
            raise ShapeError(
                "statistics to join",
                got=f"widths {self.width} and {other.width}, "
                f"{sorted(self.collected)} and {sorted(other.collected)}",
                want="those of one layer, collected alike",
                fix="Join what `observing` found for the same layer.",
            )
        spread = _add_collected(self.deviations, other.deviations)
        if spread is not None:
            # deviations of each part from its own mean, plus deviations of the means (Chan et al.)
            share = self.count * other.count / max(1, self.count + other.count)
            spread = spread + (other.mean - self.mean).square() * share
        return Statistics(
            self.count + other.count,
            _add_collected(self.total, other.total),
            _add_collected(self.squares, other.squares),
            _add_collected(self.hessian, other.hessian),
            spread,
        )

    @property
    def mean(self) -> Tensor:
        """The mean of each channel, (d,); 0 for no rows."""
        return self._read("mean", self.total) / max(1, self.count)

    @property
    def mean_square(self) -> Tensor:
        """The mean square of each channel, (d,); Wanda multiplies a weight by its root."""
        return self._read("square", self.squares) / max(1, self.count)

    @property
    def variance(self) -> Tensor:
        """The variance of each channel over the rows (no correction), (d,)."""
        return self._read("mean", self.deviations) / max(1, self.count)

    @property
    def second_moment(self) -> Tensor:
        """The mean of x x^T, (d, d)."""
        return self._read("hessian", self.hessian) / max(1, self.count)

    def _read(self, name: str, value: Tensor | None) -> Tensor:
        """Return a sum, or raise ConfigError if it was not collected."""
        if value is None:
            subject, fix = "statistics", f"Collect it: needs={{{name!r}}}."
            raise ConfigError(subject, got=f"no {name!r}", want=f"{name!r} collected", fix=fix)
        return value


def _sum_tensors(parts: list[Tensor]) -> Tensor:
    """Add up tensors of one shape in float64."""
    return reduce(add, (part.double() for part in parts))


def _sum_rows(parts: list[Tensor]) -> Tensor:
    """Sum the rows of chunks (n, d) in float64.  Returns (d,)."""
    return _sum_tensors([part.sum(0) for part in parts])


def _add_collected(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Add two sums, None where they were not collected."""
    return None if first is None or second is None else first + second


@dataclass
class Observed:
    """The statistics that `observing` collects.

    found: each layer's statistics so far, by name; mask: (B, T) bool, False = padding.

    Set the mask before each forward that has one, and None before each that has none. A layer with
    an input of other leading axes than the mask's counts all its rows. Layers that are given the
    same tensor one after the other, as the projections of an attention are, share one pass over it.
    """

    found: dict[str, Statistics] = field(default_factory=lambda: dict[str, Statistics]())
    mask: Tensor | None = None
    last: tuple[Tensor, Any, Statistics] | None = None  # an input, and its statistics

    def add(self, name: str, new: Statistics) -> None:
        """Add the statistics of further rows to a layer's.  name: the layer's."""
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
    """Collect statistics of layers' inputs at every forward inside the context.

    with observing({"fc1": model.fc1}) as seen:
        for batch in batches:
            model(batch)
    seen.found["fc1"].mean_square

    layers: name -> module. The channels are the last axis of a layer's input (..., d), the second
      of a convolution's.
    outputs: names of the layers to observe by their output, not by their input.
    needs: the kinds to collect, see `Statistics.of`; hessian: adds "hessian" to it: d^2 numbers for
      each layer, and N d^2 products. A layer that no forward reaches is not in `found`.
    unfolded: count the input of a k x k convolution patch by patch: a row for each place of its
      output, with the channels (channel, row, column) that the kernel covers there, in the order of
      the weight's `flatten(1)`.
    """
    collected = frozenset(needs) | ({"hessian"} if hessian else frozenset())
    observed = Observed()
    hooks = [
        module.register_forward_hook(
            partial(_add_call, observed, name, name in outputs, collected, unfolded)
        )
        for name, module in layers.items()
    ]
    try:
        yield observed
    finally:
        observed.last = None
        for hook in hooks:
            hook.remove()


def of_all_processes(statistics: Mapping[str, Statistics]) -> dict[str, Statistics]:
    """Add up the statistics of all processes, layer by layer; the result is equal on all.

    statistics: name of a layer -> this process's statistics.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return dict(statistics)
    # processes add up in the order of their ranks, so that rounding is the same everywhere
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, dict(statistics))
    joined: dict[str, Statistics] = {}
    for by_layer in gathered:
        for name, new in by_layer.items():
            joined[name] = joined[name] + new if name in joined else new
    return joined


def _add_call(
    observed: Observed,
    name: str,
    output: bool,
    needs: frozenset[str],
    unfolded: bool,
    module: nn.Module,
    args: Any,
    y: Any,
) -> None:
    """Add one call of a layer to the statistics; a forward hook of the layer."""
    activations: Tensor = y if output else args[0]
    if unfolded and not output and isinstance(module, nn.Conv2d) and set(module.kernel_size) != {1}:
        for sample in activations.split(1):  # a patch holds kh kw as many numbers as the picture
            observed.add(name, Statistics.of(_patches(module, sample, y), needs=needs))
        return
    conv = isinstance(module, nn.modules.conv._ConvNd)
    # layers that are given one tensor, not written to since, share a pass over it
    key = (0 if activations.is_inference() else activations._version, id(observed.mask), conv)
    if observed.last is not None and observed.last[0] is activations and observed.last[1] == key:
        new = observed.last[2]
    else:
        x = activations.movedim(1, -1) if conv else activations
        mask = observed.mask
        masked = mask is not None and mask.shape == x.shape[:-1]
        rows = x[mask.to(x.device)] if masked and mask is not None else x.flatten(0, -2)
        new = Statistics.of(rows, needs=needs)
        observed.last = activations, key, new
    observed.add(name, new)


def _patches(conv: nn.Conv2d, x: Tensor, y: Tensor) -> Tensor:
    """Return the patch of a convolution's input under each output position, (h w, d kh kw)."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    sides: list[int] = []
    for axis in (1, 0):  # F.pad begins with the last one
        before = after = 0
        if isinstance(conv.padding, str) or not conv.padding[axis]:
            # the layer pads on its own: enough zeros for the last output, the odd one behind
            span = (y.shape[2 + axis] - 1) * conv.stride[axis]
            need = span + conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
            extra = max(0, need - x.shape[2 + axis])
            before, after = extra // 2, extra - extra // 2
        else:
            before = after = conv.padding[axis]
        sides += [before, after]
    padded = nn.functional.pad(x, sides, mode=mode) if any(sides) else x
    patches = nn.functional.unfold(
        padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride
    )
    return patches[0].T
