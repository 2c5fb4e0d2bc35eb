"""Tutel (arXiv:2206.03382): one layout of the weights, any degree of parallelism for each batch.

D devices, E experts: S = max(1, D / E) devices share the hidden units of an expert for ever, or
each has E / D experts whole. Between the extremes of sending all weights (r = 0) and sending all
rows to all slices (r = S) every divisor r of S is a degree; a change of degree moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..core import Card, Paper, Routing
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..mixtures.experts import Experts
from ..placement.engines import ExpertSize
from ..placement.plan import DevicePlan, PlanStep
from ..placement.timeline import simulate
from ..placement.topology import Topology
from ..placement.trace import Trace
from ..processes.exchange import Wire
from .blocks import (
    EXCHANGES,
    PairTable,
    Swap,
    agreed_capacity,
    counts_step,
    planned_capacity,
    swap_steps,
    swaps_of,
)
from .layout import (
    Cuttable,
    OwnExperts,
    check_parts,
    cut,
    having,
    joined,
    packed,
    size_of,
    stacked,
    unpacked,
)
from .strategy import Strategy, check_devices, lined_up

CHUNKS = (1, 2, 4, 8)  # that `Tutel.tuned` looks at
BY = ("time", "bytes")


@dataclass(frozen=True)
class Tutel(Strategy):
    """Rows in tables of C places an expert, sent to r groups of devices that compute part of it.

    In a forward a device receives (D - 1) / D E P numbers with r = 0, P the numbers of an expert,
    else 2 E C r d (D - 1) / D + (S / r - 1) P / S. C is the largest load of an expert in any
    process, rounded up, so that no pair is dropped; what a `Capacity` drops is dropped before.

    Raises: ConfigError for settings that cannot be; in `plan` and `shard` for a degree that does
    not divide S, E that neither divides D nor is divided by it, or h that S does not divide.
    The gate is the mixture's own; Tutel's cosine gate is `intarsia.routers.Cosine`.
    Not for experts of several kinds, or very uneven loads: their tables are mostly empty.
    Source: arXiv:2206.03382, sections 3 and 4.
    """

    degree: int | None = setting(
        None,
        "The groups r of devices, 0 or a divisor of S; None = the best number for the batch at "
        "hand, see `by`.",
        least=0,
    )
    chunks: int = setting(
        1, "The parts of the tables that are sent while others are computed.", least=1
    )
    exchange: str = setting(
        "flat",
        'The way of the tables: "flat", or "hierarchical" (2DH), inside a node, then between '
        "equal places of nodes.",
        choices=EXCHANGES,
    )
    by: str = setting(
        "time",
        'The cost that the best degree has least of: "time" of a forward of the layer, '
        "simulated on the links that it was given (the paper measures it, which would make runs "
        "differ in their last bits; where nothing is known of the links they are taken for "
        'equal); "bytes" that a device receives, 0 where rows are many, so that weights travel, '
        "else about sqrt(m h D / (2 E C (D - 1))), m the matrices of an expert.",
        choices=BY,
    )

    def __post_init__(self) -> None:
        check(self)

    def plan(
        self,
        trace: Trace,
        size: ExpertSize,
        topology: Topology,
        *,
        backward: bool = False,
        past: Sequence[Tensor] = (),
    ) -> DevicePlan:
        """Return what one batch sends and computes, as steps; `past` does not change it."""
        devices, experts = topology.devices, trace.experts
        slices = slices_of(experts, devices)
        check_parts(size.hidden, slices)
        rows = self.rows(trace, devices)
        forward: list[PlanStep] = []
        back: list[PlanStep] = []
        after: dict[str, tuple[str, ...]] = {}  # step -> what it waits for, if not the one before
        for layer in range(trace.layers):
            # C must be divisible by the slices, which share its places, and by the chunks.
            multiple = slices * self.chunks
            places = planned_capacity(trace.expert[:, layer], rows, experts, multiple)
            degree = self.chosen(experts, places, size, topology)
            steps, turned = self._layer(layer, degree, places, size, topology, experts, after)
            forward += steps
            back = turned + back
        return DevicePlan(lined_up(forward + back if backward else forward, after), devices)

    def _layer(
        self,
        layer: int,
        degree: int,
        places: int,
        size: ExpertSize,
        topology: Topology,
        experts: int,
        after: dict[str, tuple[str, ...]],
    ) -> tuple[list[PlanStep], list[PlanStep]]:
        """Return the steps of a layer's forward and backward; adds to `after`."""
        devices, slices = topology.devices, slices_of(experts, topology.devices)
        per_device = max(1, experts // devices)
        weight_swaps = weights_swaps(experts, devices, degree)
        weight_bytes = per_device * slice_weights(size, slices)
        weights = swap_steps(weight_swaps, layer, "weights", weight_bytes)
        turned = swap_steps(weight_swaps, layer, "weights", weight_bytes, backward=True)
        forward, back = [counts_step(layer, devices), *weights], list(turned)
        count = 1 if degree == 0 else self.chunks
        sent = swaps_of([range(devices)], topology.nodes(), self.exchange)
        # Rows of a block to each device, and the rows that one device computes in all: with r = 0
        # the rows of its own tables, as the weights have come to it.
        per = block_rows(experts, devices, degree, places // count) if degree else 0
        computed = devices * per if degree else experts * places
        flops = computed * size.flops / max(1, degree)  # of a row each group has h / r units
        work = torch.full((devices,), flops, dtype=torch.float64)
        ahead: list[PlanStep] = []
        rest: list[PlanStep] = []
        for chunk in range(count):
            name = f"{layer}.{chunk}.expert"
            there_and_back: list[list[PlanStep]] = []
            for phase in ("dispatch", "combine") if degree else ():
                exchange_steps = swap_steps(sent, layer, f"{chunk}.{phase}", per * size.row)
                there_and_back.append(exchange_steps)
                # Gradients take the exchanges in reverse: back through the combine first, the
                # dispatch last.
                back_of = swap_steps(sent, layer, f"{chunk}.{phase}", per * size.row, backward=True)
                back = back_of + back if phase == "combine" else back + back_of
            product = PlanStep(name, layer, "expert", "compute", flops=work)
            position = len(swap_steps(sent, layer, f"{chunk}.combine", 1)) if degree else 0
            back.insert(position, replace(product, name=f"{name}.back", flops=2 * work))
            # Pipelining: all dispatches are queued ahead, and each product waits for its own
            # chunk's dispatch alone, so that links and devices work at the same time.
            if degree and count > 1:
                ahead += there_and_back[0]
                rest += [product, *there_and_back[1]]
                after[name] = (there_and_back[0][-1].name,)
            else:
                dispatch, combine = there_and_back if degree else ([], [])
                rest += [*dispatch, product, *combine]
        return [*forward, *ahead, *rest], back

    def chosen(self, experts: int, places: int, size: ExpertSize, topology: Topology) -> int:
        """Choose the degree r: how many groups of devices compute parts of an expert.

        A part is some of the hidden units, for all rows; r = 0 sends weights instead of rows.
        experts: E; places: C, how many rows an expert takes from each device; size: an expert's
          widths and bytes; topology: D devices and links. Raises: ConfigError if the setting
          `degree` is not possible.
        """
        devices = topology.devices
        possible = degrees(experts, devices)
        # The degree is chosen again for each capacity: no weights move when it changes.
        if self.degree is None and self.by == "bytes":
            return min(possible, key=lambda r: received(r, experts, devices, places, size))
        if self.degree is None:
            return min(possible, key=lambda r: self._seconds(r, experts, places, size, topology))
        if self.degree not in possible:
            got, want = (
                f"{self.degree} for {experts} experts on {devices} devices",
                f"one of {possible}",
            )
            raise ConfigError("degree", got=got, want=want, fix="Leave it out: the best is taken.")
        return self.degree

    def _seconds(
        self, degree: int, experts: int, places: int, size: ExpertSize, topology: Topology
    ) -> float:
        """Simulate the forward of a layer with this degree, and return its seconds."""
        after: dict[str, tuple[str, ...]] = {}
        steps, _ = self._layer(0, degree, places, size, topology, experts, after)
        return simulate(DevicePlan(lined_up(steps, after), topology.devices), topology).seconds

    @classmethod
    def tuned(cls, trace: Trace, size: ExpertSize, topology: Topology) -> Tutel:
        """Find the settings with the least simulated time for batches like the trace's.

        trace: which experts each token has; size: an expert's widths and bytes; topology: devices
          and links.
        """
        candidates = [
            cls(degree, chunks, exchange)
            for degree in degrees(trace.experts, topology.devices)
            for chunks in (CHUNKS if degree else (1,))
            for exchange in (_exchanges(topology) if degree else ("flat",))
        ]
        return min(
            candidates,
            key=lambda candidate: simulate(candidate.plan(trace, size, topology), topology).seconds,
        )

    def shard(
        self, experts: Experts, wire: Wire, topology: Topology, layers: int = 1
    ) -> TutelExperts:
        """Copy this process's part of a layer's experts; the given experts stay whole."""
        check_devices(topology, wire)
        return TutelExperts(stacked(experts), self, wire, topology)


class TutelExperts(OwnExperts):
    """E experts; this process keeps E / D, or one of S slices of one; see `Tutel`."""

    def __init__(self, experts: Cuttable, settings: Tutel, wire: Wire, topology: Topology) -> None:
        """Copy the experts of a layer that this process keeps, or a slice of one's hidden units."""
        super().__init__()
        self.experts, self.settings, self.wire = experts.experts, settings, wire
        self.topology, self.degrees = topology, dict[int, int]()  # places -> the degree
        self.slices = slices_of(self.experts, wire.world)
        self.held = self.lot(wire.rank)[0]
        self.local: Cuttable = cut(experts, *self.lot(wire.rank))
        self.swap = swaps_of([range(wire.world)], topology.nodes(), settings.exchange)[wire.rank]

    def lot(self, rank: int) -> tuple[Tensor, int, int]:
        """Return (experts, slice, slices): the part of the experts that process `rank` keeps."""
        per_device = max(1, self.experts // self.wire.world)
        owner, part = divmod(rank, self.slices)
        return torch.arange(owner * per_device, (owner + 1) * per_device), part, self.slices

    def mix(self, x: Tensor, routing: Routing, numbers: Tensor | None = None) -> Tensor:
        """Compute sum_e G_te f_e(x_t) for this process's rows x_t, f_e all processes' experts."""
        settings = self.settings
        places = agreed_capacity(routing, self.wire, self.slices * settings.chunks)
        degree = self._degree(places)
        table = PairTable.of(routing, places)
        filled = table.fill(x)
        weights = self._weights(degree)
        # degree 0: every process has all weights, and no row is sent
        if degree == 0:
            return table.combine(_computed(weights, filled))
        outputs = [
            self._sent(chunk, number, degree, weights)
            for number, chunk in enumerate(filled.chunk(settings.chunks, 1))
        ]
        return table.combine(torch.cat(outputs, 1))

    def _degree(self, places: int) -> int:
        """Return the degree r: into how many parts an expert's hidden units are cut."""
        if places not in self.degrees:
            size = _size(self.local, self.slices)
            self.degrees[places] = self.settings.chosen(self.experts, places, size, self.topology)
        return self.degrees[places]

    def _weights(self, degree: int) -> Cuttable:
        """Gather the weights of this process's own slice and its neighbours'."""
        swap = weights_swaps(self.experts, self.wire.world, degree)[self.wire.rank]
        if len(swap.members) == 1:
            return self.local
        rows = swap.gather(packed(self.local), self.wire, "weights")  # (G, n, P / S)
        # Experts were whole in their processes: all processes' experts, in order, are the layer.
        if degree == 0 and self.slices == 1:
            return having(self.local, unpacked(rows.flatten(0, 1), self.local), self.experts)
        count = self.slices if degree == 0 else self.slices // degree
        # `count` neighbours in a row hold the slices of the same experts.
        by_expert = rows.view(-1, count, *rows.shape[1:]).unbind(1)  # slices of (E', n, P / S)
        weights = joined(
            [unpacked(part.flatten(0, 1), self.local) for part in by_expert], self.local
        )
        return having(self.local, weights, len(next(iter(weights.values()))))

    def _sent(self, rows: Tensor, chunk: int, degree: int, weights: Cuttable) -> Tensor:
        """Send a chunk of rows (E, C', d) to their devices, and add up the outputs that return."""
        world, wire = self.wire.world, self.wire
        experts, places, width = rows.shape
        group = self.slices // degree  # devices that share a table's rows
        # The devices of a group share a table's places, and each of the r groups computes other
        # hidden units of all rows.
        parts = rows.view(experts, 1, group, places // group, width)
        blocks = parts.expand(-1, degree, -1, -1, -1)  # each of the r groups has all rows
        blocks = blocks.reshape(world, -1, width)  # (D, n C' r / S, d)
        came = self.swap.run(blocks, wire, f"{chunk}.dispatch")
        count = len(self.held)
        came = came.view(world, count, -1, width).transpose(0, 1).flatten(1, 2)  # (n, rows, d)
        outputs = _computed(weights, came)
        outputs = outputs.view(count, world, -1, outputs.shape[-1]).transpose(0, 1)
        back = self.swap.run(
            outputs.reshape(world, -1, outputs.shape[-1]), wire, f"{chunk}.combine"
        )
        # The outputs of the r groups are partial sums over hidden units.
        return back.view(experts, degree, places, -1).sum(1)


def _computed(experts: Cuttable, tables: Tensor) -> Tensor:
    """Compute each expert on its table of rows.  experts: E; tables: (E, C, d).  -> (E, C, out)."""
    count, places, width = tables.shape
    expert = torch.arange(count, device=tables.device).repeat_interleave(places)
    return experts(tables.reshape(-1, width), expert).view(count, places, -1)


def _exchanges(topology: Topology) -> tuple[str, ...]:
    """Return the exchanges that a topology allows; "hierarchical" needs nodes of equal size."""
    nodes = topology.nodes()
    if not int(nodes.max()):
        return ("flat",)
    try:
        swaps_of([range(topology.devices)], nodes, "hierarchical")
    except ConfigError:
        return ("flat",)
    return EXCHANGES


def _size(local: Cuttable, slices: int) -> ExpertSize:
    size = size_of(local)
    return replace(size, hidden=size.hidden * slices)


def slices_of(experts: int, devices: int) -> int:
    """Return S, the number of devices that share an expert's hidden units.

    experts: E; devices: D. Raises: ConfigError unless one number divides the other.
    """
    if experts % devices and devices % experts:
        works = [d for d in range(1, 2 * devices + 1) if not (experts % d and d % experts)]
        near = sorted(sorted(works, key=lambda d: abs(d - devices))[:2])
        got, want = f"{devices} for {experts} experts", "one number that divides the other"
        fix = f"Try {' or '.join(map(str, near))}."
        raise ConfigError("devices", got=got, want=want, fix=fix)
    return max(1, devices // experts)


def degrees(experts: int, devices: int) -> tuple[int, ...]:
    """Return the degrees that are possible: 0, and the divisors of the number of slices.

    experts: E; devices: D. A degree is the number of groups of devices that each compute a part of
    an expert's hidden units; 0 gathers weights instead of sending rows.
    """
    slices = slices_of(experts, devices)
    return 0, *(r for r in range(1, slices + 1) if slices % r == 0)


def slice_weights(size: ExpertSize, slices: int) -> int:
    """Return the bytes of a slice of an expert's hidden units.

    With biases each slice has an output bias, too, which is 0 in all but the first.
    """
    inner = (2 + size.gated) * size.width + size.bias * (1 + size.gated)
    return (inner * size.hidden // slices + size.bias * size.width) * size.item


def received(degree: int, experts: int, devices: int, places: int, size: ExpertSize) -> float:
    """Return the bytes that a device receives in a forward of a layer.

    degree: r, the number of groups of devices that each compute a part of an expert's hidden units;
      experts: E; devices: D; places: C, how many rows an expert takes from each device. An expert
      has S = max(1, D / E) slices. With r = 0 all weights come; else 2 C E r / D rows from each
      other device, and the weights of S / r - 1 slices.
    """
    slices, per_device = slices_of(experts, devices), max(1, experts // devices)
    weight_bytes = per_device * slice_weights(size, slices)
    if degree == 0:
        return (devices - 1) * weight_bytes
    rows = 2 * block_rows(experts, devices, degree, places) * size.row
    return (devices - 1) * rows + (slices // degree - 1) * weight_bytes


def block_rows(experts: int, devices: int, degree: int, places: int) -> int:
    """Return how many rows a device sends to each other one, E C r / D.

    experts: E; devices: D; degree: r, how many groups of devices get each row; places: C, how many
    rows an expert takes from each device.
    """
    return experts * places * degree // devices


def weights_swaps(experts: int, devices: int, degree: int) -> dict[int, Swap]:
    """Return the exchanges in which devices gather weights: rank -> the `Swap` of its group.

    experts: E; devices: D; degree: r; with r = 0 a group is all devices, else S / r in a row, S the
    number of slices of an expert.
    """
    length = devices if degree == 0 else slices_of(experts, devices) // degree
    groups = [range(first, first + length) for first in range(0, devices, length)]
    one_node = torch.zeros(devices, dtype=torch.int64)  # a flat exchange does not ask for nodes
    return swaps_of(groups, one_node, "flat")


CARD = Card(
    "tutel",
    kind="parallel",
    config=Tutel,
    paper=Paper("2206.03382", 2022, "Tutel: Adaptive Mixture-of-Experts at Scale"),
    summary="One layout of slices; each batch takes the degree that sends least.",
    family="experts on several devices",
    names=("Flex",),
)
