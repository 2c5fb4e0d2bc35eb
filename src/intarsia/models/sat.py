"""SAT, an accelerator for N:M training: cycles by formula and by simulation (arXiv:2309.13015).

An array of side x side units multiplies matrices, with dense weights or n of each m: a unit holds a
weight and log2(m) bits that choose its activation. The paper's board is not available: constants
without a source are ours, and figures compare settings with each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from ..core import NofM
from ..core.checks import above, at_least, one_of
from ..core.errors import ShapeError
from ..core.foreign import groups_of
from ..core.modes import evaluating
from ..schedules import Bdwp
from ..schedules.bdwp import n_of_m_mask

FLOWS = ("os", "ws")  # output-stationary, weight-stationary: what stays in the units
HALF = 2  # bytes of a number
MOVED = 5 * HALF  # bytes to update a weight: gradient, weight, momentum in; the last two out


@dataclass(frozen=True)
class LayerShape:
    """Shape of a linear map or convolution: y (places, outputs) = x (places, inputs kernel) W.

    kernel: kh kw; places: batch times height times width of the output; groups: of a convolution.
    For a transposed one y has every tap of each output, at the places of the input; kernel is 1.
    prunes: whether BDWP prunes it.  reads_data: its input needs no gradient.
    """

    name: str
    outputs: int
    inputs: int
    kernel: int = 1
    places: int = 1
    groups: int = 1
    prunes: bool = True
    reads_data: bool = False

    @property
    def weights(self) -> int:
        return self.groups * self.outputs * self.inputs * self.kernel


@dataclass(frozen=True)
class Cycles:
    """Cycles of a layer's step: forward, gradient of the input, of the weights, and the update.

    flows: the dataflow of each of the first three.
    """

    forward: int
    backward: int
    weights: int
    update: int
    flows: tuple[str, str, str]

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.weights + self.update


@dataclass(frozen=True)
class Sat:
    """Settings of the accelerator SAT.

    side: P, the array is P x P.  latency: stages of a multiply-add; interleave: independent tiles
    that fill them.  dataflow: "os", "ws", or "best", the faster for each layer and stage.
    pregenerate: N:M weights are selected while weights are updated, not before they are used;
      for a layer of few products that takes longer than it saves.
    lanes: weights that the update unit handles in a cycle, and number of top-k sorters.
    bandwidth: bytes a cycle to the memory.

    Raises: ConfigError for a setting out of range.
    Source: paper, sections IV and V; side and lanes are the paper's, the others ours.
    """

    side: int = 32
    latency: int = 8
    interleave: int = 8
    dataflow: str = "best"
    pregenerate: bool = True
    lanes: int = 32
    bandwidth: float = 256.0

    def __post_init__(self) -> None:
        for name in ("side", "latency", "interleave", "lanes"):
            at_least(name, getattr(self, name), 1)
        one_of("dataflow", self.dataflow, ("best", *FLOWS))
        above("bandwidth", self.bandwidth, 0)

    @property
    def interval(self) -> int:
        """Cycles I between two multiply-adds of a tile: ceil(L_p / interleave)."""
        return -(-self.latency // self.interleave)

    def gemm(self, rows: int, slots: int, columns: int, flow: str) -> int:
        """Compute the cycles of a matrix product (rows, K) (K, columns) on the array.

        slots: how many of the K weights of a column are stored: all, or n of each m; flow: what
          stays in the array's units, "os" the outputs, "ws" the weights.
        """
        # The array fills and drains along its diagonal, 2 P - 2 cycles a tile.
        side, fill = self.side, 2 * self.side - 2
        # where outputs stay, a unit adds to one sum and waits for it; where weights stay, sums move
        # on, and loading the weights takes a cycle a row of the array
        if flow == "os":
            tiles = -(-rows // side) * -(-columns // side)
            return tiles * (slots * self.interval + fill)
        return -(-slots // side) * -(-columns // side) * (rows + fill + side)

    def cycles(self, layer: LayerShape, training: Bdwp | None = None) -> Cycles:
        """Compute the cycles of a layer's training step; training: N:M by BDWP, None = dense."""
        pruned = training if training is not None and layer.prunes else None
        ahead = pruned if pruned is not None and pruned.directions != "backward" else None
        back = pruned if pruned is not None and pruned.directions != "forward" else None
        places, inputs, taps, outputs = layer.places, layer.inputs, layer.kernel, layer.outputs
        # forward and backward products: pruned weights if the training prunes that direction
        forward, of_y = self._stage(layer, places, inputs, taps, outputs, ahead)
        backward, of_x = self._stage(layer, places, outputs, taps, inputs, back)
        # WU: R = Co, K = B HW, C = Ci k^2, always dense
        weights, of_w = self._stage(layer, outputs, places, 1, inputs * taps, None)
        # WUVE, the update: its own cycles, the sorters' or the memory's, whichever is most
        update, moved = -(-layer.weights // self.lanes), layer.weights * MOVED
        for direction in (ahead, back) if self.pregenerate else ():
            moved += 0 if direction is None else _bytes(layer, direction)
        sorts = sum(self._sort(layer, d) for d in (ahead, back)) if self.pregenerate else 0
        update = max(update, sorts, self._memory_cycles(moved))
        backward = 0 if layer.reads_data else backward
        return Cycles(forward, backward, weights, update, (of_y, of_x, of_w))

    def _stage(
        self,
        layer: LayerShape,
        rows: int,
        inner: int,
        taps: int,
        columns: int,
        pruned: Bdwp | None,
    ) -> tuple[int, str]:
        """Compute the cycles of one of a layer's three products, and the faster dataflow."""
        # the product is (rows, inner * taps) (inner * taps, columns)
        slots, stored = inner * taps, layer.weights * HALF
        if pruned is not None:
            pattern = NofM.read(pruned.pattern)
            slots = -(-inner // pattern.m) * pattern.n * taps  # the last group is padded
            stored = _bytes(layer, pruned) if self.pregenerate else stored
        flows = FLOWS if self.dataflow == "best" else (self.dataflow,)
        cycles = {f: layer.groups * self.gemm(rows, slots, columns, f) for f in flows}
        best = min(cycles, key=lambda flow: cycles[flow])
        # the product and the memory traffic overlap: the slower one counts
        ends = layer.groups * layer.places * (layer.inputs + layer.outputs) * HALF
        sort = 0 if self.pregenerate else self._sort(layer, pruned)
        return max(cycles[best], self._memory_cycles(ends + stored)) + sort, best

    def _sort(self, layer: LayerShape, pruned: Bdwp | None) -> int:
        """Compute the cycles of choosing the n largest of each m weights of a layer by sorting."""
        m = 0 if pruned is None else NofM.read(pruned.pattern).m
        return -(-layer.weights // (self.lanes * m)) * m if m else 0

    def _memory_cycles(self, bytes_: float) -> int:
        return math.ceil(bytes_ / self.bandwidth)


def _bytes(layer: LayerShape, pruned: Bdwp) -> int:
    """Compute the bytes of a layer's N:M weights and their indices."""
    pattern = NofM.read(pruned.pattern)
    bits = 8 * HALF + math.ceil(math.log2(pattern.m))
    return math.ceil(layer.weights * pattern.n / pattern.m * bits / 8)


def layer_shapes(model: nn.Module, *inputs: Any, batch: int = 1) -> tuple[LayerShape, ...]:
    """List the sizes of the linear maps and convolutions that a forward calls, in order.

    batch: the number of samples of a step, by which the number of rows is multiplied. Matrix
      products of attention are not listed. The first layer, the last and grouped convolutions are
      marked as not to be pruned (prunes=False), as in the paper.
    """
    shapes: list[LayerShape] = []

    def note(name: str, layer: Any, args: Any, y: Tensor) -> None:
        """Append the sizes of a layer's matrix product to `shapes`, when a forward reaches it."""
        # `sizes` are the fields of LayerShape: outputs, inputs, kernel (taps), and places in all of
        # `batch` samples
        groups, first, second = groups_of(layer), *layer.weight.shape[:2]
        taps = math.prod(layer.weight.shape[2:])
        if getattr(
            layer, "transposed", False
        ):  # weight (in, out, ...): each input adds to outputs at all taps (kernel positions)
            sizes = second * taps, first // groups, 1, batch * args[0].numel() // first
        else:
            sizes = first // groups, second, taps, batch * y.numel() // first
        shapes.append(LayerShape(name, *sizes, groups, prunes=groups == 1))

    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    # a layer that is called twice is listed twice
    handles = [layer.register_forward_hook(partial(note, name)) for name, layer in layers]
    try:
        with torch.no_grad(), evaluating(model):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    ends = {0, len(shapes) - 1}
    return tuple(
        replace(layer, prunes=layer.prunes and i not in ends, reads_data=i == 0)
        for i, layer in enumerate(shapes)
    )


def total(sat: Sat, layers: Sequence[LayerShape], training: Bdwp | None = None) -> int:
    """Return the cycles of a training step of all layers."""
    return sum(sat.cycles(layer, training).total for layer in layers)


def simulate(
    x: Tensor, weight: Tensor, sat: Sat, flow: str = "os", pattern: NofM | None = None
) -> tuple[Tensor, int]:
    """Simulate the array cycle by cycle, for small matrices: return x W^T and the cycles.

    x: (rows, K); weight: W, (columns, K), dense or n of m along K; sat: the systolic array, of side
      x side multipliers; flow: what stays in a unit, "os" the outputs or "ws" the weights; pattern:
      n of m weights along K, None = dense. In each cycle every unit passes its activations to the
      right and its weights (os) or sums (ws) down. It is the reference for `Sat.gemm`.
    Raises: ShapeError for other shapes; ConfigError for an unknown flow.
    """
    one_of("flow", flow, FLOWS)
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        got = f"{tuple(x.shape)} and {tuple(weight.shape)}"
        raise ShapeError("product", got=got, want="(R, K) and (C, K)", fix="Transpose the weight.")
    pattern, side = pattern or NofM(1, 1), sat.side
    groups, values, places = _compact(x.double(), weight.double(), pattern)
    y, cycles = x.new_zeros((len(x), len(weight)), dtype=torch.float64), 0
    everything = slice(None)
    # os: tiles of rows and columns; ws: tiles of slots and columns; their sums add up
    blocks = range(0, len(x) if flow == "os" else values.shape[1], side)
    for start, column in product(blocks, range(0, len(weight), side)):
        block, c = slice(start, start + side), slice(column, column + side)
        r, s = (block, everything) if flow == "os" else (everything, block)
        tile = groups[r, s], values[c, s], places[c, s]
        part, spent = _os(*tile, sat) if flow == "os" else _ws(*tile, side)
        y[r, c] += part
        cycles += spent
    return y, cycles


def _compact(x: Tensor, weight: Tensor, pattern: NofM) -> tuple[Tensor, Tensor, Tensor]:
    """Compact a weight with n of each m entries not 0, and group the activations accordingly."""
    # x: (R, K), activations; weight: (C, K)
    n, m = pattern.n, pattern.m
    pad = -x.shape[1] % m
    mask = n_of_m_mask(weight, NofM(n, m, 1))
    weight, x, selected = (nn.functional.pad(t, (0, pad)) for t in (weight * mask, x, mask))
    # The indices of the n selected weights of each group of m, in order.
    order = (
        selected.view(len(selected), -1, m)
        .byte()
        .argsort(dim=-1, descending=True, stable=True)[..., :n]
    )
    values = weight.view(len(weight), -1, m).gather(-1, order)
    groups = x.view(len(x), -1, 1, m).expand(-1, -1, n, -1)
    # the m activations that each slot may need, (R, S, m); the stored weights, (C, S); and
    # which of the m activations belongs to each, (C, S)
    return groups.flatten(1, 2), values.flatten(1), order.flatten(1)


def _os(x: Tensor, values: Tensor, places: Tensor, sat: Sat) -> tuple[Tensor, int]:
    """Simulate units that keep the outputs, for one tile: products (R, C), and the cycles."""
    # activations enter on the left and weights at the top, each row and column one cycle after
    # the one before, so that they meet in the units; x: (R, S, m); values, places: (C, S)
    side, slots = sat.side, values.shape[1]
    sums = torch.zeros(side, side, dtype=torch.float64)
    done = torch.zeros(side, side, dtype=torch.int64)
    rights: dict[tuple[int, int], int] = {}  # unit -> slot of the activations it has
    downs: dict[tuple[int, int], int] = {}  # unit -> slot of the weight it has
    cycle = last = 0
    while int(done.min()) < slots:
        rights = {(p, q + 1): s for (p, q), s in rights.items() if q + 1 < side}
        downs = {(p + 1, q): s for (p, q), s in downs.items() if p + 1 < side}
        for i in range(side):  # edge i begins i cycles later, a slot each interval
            slot, rest = divmod(cycle - i, sat.interval)
            if rest == 0 and 0 <= slot < slots:
                rights[i, 0] = downs[0, i] = slot
        for (p, q), slot in rights.items():
            assert downs[p, q] == slot  # the skew makes a slot's two operands meet
            done[p, q] += 1
            last = cycle + sat.interval
            if p < len(x) and q < len(values):
                sums[p, q] += x[p, slot, places[q, slot]] * values[q, slot]
        cycle += 1
    return sums[: len(x), : len(values)], last


def _ws(x: Tensor, values: Tensor, places: Tensor, side: int) -> tuple[Tensor, int]:
    """Simulate units that keep the weights, for one tile: products (R, C), and the cycles."""
    # x: (R, S, m), what each slot may need; values, places: (C, S), as `_compact` returns them
    y = torch.zeros(len(x), len(values), dtype=torch.float64)
    cycle = side  # loading the weights took a cycle a row
    out = 0
    rights: dict[tuple[int, int], int] = {}  # unit -> row of the activations it has
    sums: dict[tuple[int, int], float] = {}  # unit -> the partial sum from above
    while out < len(x) * side:
        rights = {(p, q + 1): r for (p, q), r in rights.items() if q + 1 < side}
        for p in range(side):
            if 0 <= cycle - side - p < len(x):
                rights[p, 0] = cycle - side - p
        # A unit adds its product to the sum from above, and passes it down in the next cycle.
        passed: dict[tuple[int, int], float] = {}
        for (p, q), row in rights.items():
            filled = q < len(values) and p < values.shape[1]
            product = float(x[row, p, places[q, p]] * values[q, p]) if filled else 0.0
            sum_ = sums.get((p, q), 0.0) + product
            if p + 1 < side:
                passed[p + 1, q] = sum_
            else:
                out += 1
                if q < len(values):
                    y[row, q] = sum_
        sums = passed
        cycle += 1
    return y, cycle


def each_layer(
    sat: Sat, layers: Sequence[LayerShape], training: Bdwp
) -> Iterator[tuple[LayerShape, Cycles, Cycles]]:
    """Yield every layer with its cycles in a dense training and in an N:M training."""
    for layer in layers:
        yield layer, sat.cycles(layer), sat.cycles(layer, training)
