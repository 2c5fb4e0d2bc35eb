"""DeepSpeed-MoE's system (arXiv:2201.05596, section 5): groups, slices, coordinated exchange.

D devices = P data groups of L tensor-parallel ranks that hold the same rows. Experts are dealt out
to the P groups; where P > E, S = P / E groups share the hidden units of an expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from ..core import Card, Paper, Routing
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..mixtures.experts import Experts
from ..placement.engines import ExpertSize
from ..placement.plan import DevicePlan, PlanStep
from ..placement.topology import Topology
from ..placement.trace import Trace
from ..processes.exchange import Wire
from .blocks import (
    PairTable,
    Swap,
    agreed_capacity,
    alike,
    counts_step,
    join,
    planned_capacity,
    split,
    swap_steps,
    swaps_of,
)
from .layout import Cuttable, OwnExperts, check_parts, cut, having, packed, stacked, unpacked
from .strategy import Strategy, chained, check_devices, dealt
from .tutel import slice_weights, slices_of

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "flat": "to all members of the expert group at once",
        "hierarchical": "inside a node, then between equal places of nodes",
        "coordinated": "each tensor-parallel rank sends 1 / L of the places, and all gather after",
    }
)


@dataclass(frozen=True)
class DeepSpeed(Strategy):
    """Tables of C places an expert go through the expert group, the devices of equal tensor rank.

    Rank l of data group p is device p L + l. Ranks of a data group hold copies of its experts;
    their gradients are added up where each sees a part of the rows. Slices of an expert (P > E)
    gather the rows of their group and add their parts. C is the largest load of an expert in any
    process, rounded up to a multiple of L, so that no pair is dropped; what a `Capacity` drops is
    dropped before.

    Raises: ConfigError for settings that cannot be; in `plan` and `shard` for devices that L does
    not divide, E and P where neither divides the other, or h that S does not divide.
    Not for very uneven loads: their tables are mostly empty. The model's own tensor parallelism is
    not part of this: the L ranks must bring the same rows.
    Source: arXiv:2201.05596, sections 5.2 and 5.3.
    """

    tensor: int = setting(1, "The ranks L of a data group, which share its rows.", least=1)
    exchange: str = setting(
        "flat",
        'The way of the tables: "flat"; "hierarchical", G + D / G messages for D; '
        '"coordinated", L times fewer bytes an exchange, and one gather among the L.',
        choices=tuple(KINDS),
    )

    def __post_init__(self) -> None:
        check(self)

    def rows(self, trace: Trace, devices: int) -> Tensor:
        """Return which device has which rows, (D, N) bool; a data group's L ranks have the same."""
        return dealt(trace, devices, self.tensor)

    def check_trains(self) -> None:
        """Raise ConfigError for tensor > 1: in a training each process has rows of its own."""
        if self.tensor > 1:
            got, want = f"tensor={self.tensor}", "1: each process has rows of its own"
            fix = "Use DeepSpeed(exchange='hierarchical'), or carry out a plan: parallel.run."
            raise ConfigError("parallel", got=got, want=want, fix=fix)

    def groups(self, experts: int, topology: Topology) -> Groups:
        """Divide the devices into groups: those that exchange rows, slices of experts, and copies.

        experts: E; topology: D devices. Each L = `tensor` devices in a row bring the same rows of
          the batch. Experts are dealt out to these P = D / L data groups; if P > E, S = P / E of
          them share the hidden units of an expert. Raises: ConfigError for devices that L does not
          divide, or E and P where neither divides the other.
        """
        devices, tensor = topology.devices, self.tensor
        if devices % tensor:
            got, want = f"{devices} devices for tensor={tensor}", "a number that tensor divides"
            raise ConfigError("devices", got=got, want=want, fix="Use another number of either.")
        data = devices // tensor
        slices = slices_of(experts, data)
        kind = "hierarchical" if self.exchange == "hierarchical" else "flat"
        # Device numbers by owner of experts, slice, and tensor rank: each kind of group varies one
        # of the three axes and holds the others.
        rank = torch.arange(devices).view(-1, slices, tensor)  # (owners of experts, S, L)
        flat = torch.zeros(devices, dtype=torch.int64)
        return Groups(
            slices,
            max(1, experts // data),
            # The expert group: all owners, with equal slice and tensor rank.
            swaps_of(rank.flatten(1).T.tolist(), topology.nodes(), kind),
            # The slice group: the devices that hold other hidden units of the same experts.
            swaps_of(rank.transpose(1, 2).flatten(0, 1).tolist(), flat, "flat"),
            # The tensor group: the devices that bring the same rows and hold copies.
            swaps_of(rank.flatten(0, 1).tolist(), flat, "flat"),
        )

    def plan(
        self,
        trace: Trace,
        size: ExpertSize,
        topology: Topology,
        *,
        backward: bool = False,
        past: Sequence[Tensor] = (),
    ) -> DevicePlan:
        """Return what one batch sends and computes, as steps."""
        devices, experts = topology.devices, trace.experts
        groups, rows = self.groups(experts, topology), self.rows(trace, devices)
        check_parts(size.hidden, groups.slices)
        parts = self.parts
        forward: list[PlanStep] = []
        back: list[PlanStep] = []
        for layer in range(trace.layers):
            places = planned_capacity(trace.expert[:, layer], rows, experts, parts)
            block = groups.held * places // parts  # rows from a device to each member
            owners = len(groups.exchange[0].members)
            table = block * owners * size.row  # bytes of all experts' places of a device
            computed = block * owners * groups.slices * size.flops / groups.slices
            work = torch.full((devices,), computed, dtype=torch.float64)
            name = f"{layer}.expert"
            product = PlanStep(name, layer, "expert", "compute", flops=work)
            # The legs of the forward in order: group, phase, and bytes of a block.
            legs = [
                (groups.exchange, "dispatch", block * size.row),
                (groups.slice, "slices", table),
                (groups.slice, "sums", table),
                (groups.exchange, "combine", block * size.row),
            ]
            steps = [
                swap_steps(swaps, layer, phase, bytes_each) for swaps, phase, bytes_each in legs
            ]
            join_steps = swap_steps(groups.tensor, layer, "join", table) if parts > 1 else []
            forward += [counts_step(layer, devices), *steps[0], *steps[1], product]
            forward += [*steps[2], *steps[3], *join_steps]
            turned = [
                swap_steps(swaps, layer, phase, bytes_each, backward=True)
                for swaps, phase, bytes_each in legs
            ]
            weight_bytes = groups.held * slice_weights(size, groups.slices)
            extra = [("copies", weight_bytes), ("split", table)] if parts > 1 else []
            extra_steps = [
                swap_steps(groups.tensor, layer, n, bytes_each, backward=True)
                for n, bytes_each in extra
            ]
            copies, split_steps = extra_steps or ([], [])
            # A backward computes gradients of rows and of weights: twice the products.
            slower = replace(product, name=f"{name}.back", flops=2 * work)
            # gradients take the legs in reverse
            back = [
                *turned[3],
                *turned[2],
                slower,
                *copies,
                *turned[1],
                *turned[0],
                *split_steps,
                *back,
            ]
        return chained(forward, back if backward else [], devices)

    @property
    def parts(self) -> int:
        """Number of parts of an expert's rows, one for each tensor-parallel rank."""
        return self.tensor if self.exchange == "coordinated" else 1

    def shard(
        self, experts: Experts, wire: Wire, topology: Topology, layers: int = 1
    ) -> DeepSpeedExperts:
        """Copy this process's part of a layer's experts; the given experts stay whole."""
        check_devices(topology, wire)
        return DeepSpeedExperts(stacked(experts), self, wire, topology)


@dataclass(frozen=True)
class Groups:
    """slices: S; held: experts of a device. Of each device: with whom tables are exchanged (the
    expert group), who has other slices of its experts, and who has the same rows and copies."""

    slices: int
    held: int
    exchange: dict[int, Swap]
    slice: dict[int, Swap]
    tensor: dict[int, Swap]


class DeepSpeedExperts(OwnExperts):
    """E experts; this process keeps E / P, or one of S slices of one; see `DeepSpeed`."""

    def __init__(
        self, experts: Cuttable, settings: DeepSpeed, wire: Wire, topology: Topology
    ) -> None:
        """Copy the experts of a layer that this process keeps, or a slice of one's hidden units."""
        super().__init__()
        self.experts, self.settings, self.wire = experts.experts, settings, wire
        groups = settings.groups(self.experts, topology)
        self.groups = groups
        self.held = self.lot(wire.rank)[0]
        self.local: Cuttable = cut(experts, *self.lot(wire.rank))
        self.exchange, self.slice, self.tensor = (
            swaps[wire.rank] for swaps in (groups.exchange, groups.slice, groups.tensor)
        )

    def lot(self, rank: int) -> tuple[Tensor, int, int]:
        """Return (experts, slice, slices): the part of the experts that process `rank` keeps."""
        groups = self.groups
        # devices are numbered by owner, slice and tensor rank, the last one fastest
        owner, part = divmod(rank // self.settings.tensor, groups.slices)
        experts = torch.arange(owner * groups.held, (owner + 1) * groups.held)
        return experts, part, groups.slices

    def mix(self, x: Tensor, routing: Routing, numbers: Tensor | None = None) -> Tensor:
        """Compute sum_e G_te f_e(x_t) for this process's rows x_t, f_e all processes' experts."""
        wire, parts = self.wire, self.settings.parts
        places = agreed_capacity(routing, wire, parts)
        table = PairTable.of(routing, places)
        rows, local = table.fill(x), self.local
        if parts > 1:
            # Coordinated exchange (section 5.3): the L tensor ranks have the same rows, so each
            # sends 1 / L of the places, and all gather the outputs at the end.
            rows = split(rows, self.tensor, wire, "split")  # (E, C / L, d)
            # Each rank has then seen a part of the rows only, so the gradients of its copies are
            # summed over the L ranks.
            copies = alike(packed(local), self.tensor, wire, "copies")
            local = having(local, unpacked(copies, local), local.experts)
        count, owners = len(self.held), len(self.exchange.members)
        blocks = rows.reshape(owners, -1, rows.shape[-1])  # (G, n C / L, d)
        came = self.exchange.run(blocks, wire, "dispatch")
        if len(self.slice.members) > 1:
            # Slices of one expert need all rows of their group, as each computes a summand.
            came = self.slice.gather(came, wire, "slices").flatten(0, 1)  # (S G, n C / L, d)
        outputs = self._computed(local, came.view(len(came), count, -1, came.shape[-1]))
        if len(self.slice.members) > 1:
            # The partial outputs of the slices add up to the expert's output.
            outputs = self.slice.add(outputs.view(-1, owners, *outputs.shape[1:]), wire, "sums")
        back = self.exchange.run(outputs, wire, "combine")
        back = back.view(self.experts, -1, back.shape[-1])  # (E, C / L, out)
        if parts > 1:
            back = join(back, self.tensor, wire, "join")
        return table.combine(back)

    def _computed(self, local: Cuttable, came: Tensor) -> Tensor:
        """Compute the rows for this process's experts: (D', n, m, d) -> (D', n m, out)."""
        # from each of D' devices m rows for each of n experts
        sources, experts, places, width = came.shape
        # Rows are grouped by expert, whichever device they came from.
        rows = came.transpose(0, 1).reshape(-1, width)
        expert = torch.arange(experts, device=rows.device).repeat_interleave(sources * places)
        outputs = local(rows, expert).view(experts, sources, places, -1)
        return outputs.transpose(0, 1).reshape(sources, experts * places, -1)


CARD = Card(
    "deepspeed",
    kind="parallel",
    config=DeepSpeed,
    paper=Paper(
        "2201.05596",
        2022,
        "DeepSpeed-MoE: Advancing Mixture-of-Experts Inference and Training to Power "
        "Next-Generation AI Scale",
    ),
    tiny={"tensor": 2, "exchange": "coordinated"},
    summary="Expert groups, slices, and exchanges that know of nodes and tensor parallelism.",
    family="experts on several devices",
)
