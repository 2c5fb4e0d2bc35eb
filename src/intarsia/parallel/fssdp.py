"""Hecate's fully sharded sparse data parallelism (arXiv:2502.02581).

Each expert has one owner (P0). For every batch and layer more devices hold copies of the experts
that are expected to be busy (P1): a sparse all-gather before, a sparse reduce-scatter of gradients
after. Nothing but the owner's optimiser state lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from ..core import Card, Paper, Routing
from ..core.schema import check, setting
from ..mixtures.experts import Experts
from ..placement.engines import (
    INDEX,
    ExpertSize,
    destinations,
    homes,
    layer_steps,
    off_diagonal,
    ranks_on_device,
)
from ..placement.materialise import by_load, materialise, rows_computed
from ..placement.placement import Placement
from ..placement.plan import DevicePlan, PlanStep
from ..placement.topology import Topology
from ..placement.trace import Trace
from ..processes.exchange import Wire
from .layout import Cuttable, cut, having, packed, size_of, stacked, unpacked
from .sharded import Sharded
from .strategy import Strategy, check_devices, lined_up


@dataclass(frozen=True)
class Fssdp(Strategy):
    """Copies of the busiest experts for one batch, gathered from their owners and forgotten.

    Rows go to the own device's copy, else the node's, else any; to several in turn, by their places
    among the device's rows. A batch without a past has no copies unless calibrated. Every process
    sends its E loads to all, and all decide the same.

    Raises: ConfigError for settings that cannot be; in `shard` for experts that are not stacked.
    Not where loads are even: plain `ExpertParallel` then sends less.
    Source: arXiv:2502.02581, sections 4 and 5. Remainders, and that copies lie next to the owner's,
    are ours. `calibrate` seldom chooses again: on two nodes of the default links a batch of 1,024
    rows a device would save .3 ms of products for copies that take 2 ms to come.
    """

    memory: int = setting(2, "The copies m that a device has room for in a layer.", least=0)
    hottest: int = setting(
        8,
        "The experts t that are copied, chosen by their mean load; t <= m: all devices get all "
        "of them, else D m copies are dealt to the devices by load.",
        least=0,
    )
    window: int = setting(5, "The last batches over which the mean load is taken.", least=1)
    calibrate: bool = setting(
        False,
        "When the batch's own loads are known, choose again if that saves more in products than "
        "the further copies take to come.",
    )
    rematerialise: bool = setting(
        False, "Forget the copies after the forward, and gather them again in the backward."
    )
    reshard: int = setting(
        100,
        "The steps of a training between which owners change: `by_load` deals all layers' "
        "experts out again, by the loads of the newest batches, so that the experts that are "
        "not copied are even, and weights go to their new owners with all that the optimiser "
        "remembers of them; 0 = owners stay in order. A layer alone, outside of `intarsia.fit`, "
        "keeps its owners.",
        least=0,
    )

    def __post_init__(self) -> None:
        check(self)

    def holds(
        self,
        past: Sequence[Tensor],
        load: Tensor,
        owner: Tensor,
        size: ExpertSize,
        topology: Topology,
    ) -> Tensor:
        """Decide which devices have which experts of a layer for one batch.  Returns (D, E) bool.

        An expert's owner has it always, further devices have a copy if it is expected to be busy.
        past: loads (E,) of the batches before; load: (D, E), of this one, by the device of the
          tokens; owner: (E,), the device that keeps each expert; size: an expert's widths and
          bytes; topology: D devices and links.
        """
        nodes = topology.nodes()
        copies = owner[None] == torch.arange(topology.devices)[:, None]
        if past:
            # Step 1: the loads that are expected, the mean of the last batches, decide on copies
            # before the batch itself is known, so that the gather can overlap computation.
            expected = torch.stack(list(past)[-self.window :]).double().mean(0)
            copies = materialise(expected, owner, nodes, self.memory, self.hottest)
        if not self.calibrate or topology.devices == 1:
            return copies
        # Step 2, calibration: the placement for the loads that the batch really has, and whether it
        # saves more time than its copies take to arrive.
        by_own_load = materialise(load.sum(0), owner, nodes, self.memory, self.hottest)
        rows_before, rows_after = (
            rows_computed(load, holders, nodes).max() for holders in (copies, by_own_load)
        )
        # Forward and backward compute three products of a row, and all wait for the busiest device.
        saved_seconds = (
            3 * float(rows_before - rows_after) * size.flops / float(topology.flops.min())
        )
        # The device that receives the most further copies is waited for; a copy travels once in the
        # forward, and its gradient once in the backward.
        further = int((by_own_load & ~copies).sum(1).max())
        apart = ~torch.eye(topology.devices, dtype=torch.bool)
        copy_seconds = 2 * further * size.weights / float(topology.bandwidth[apart].min())
        return by_own_load if saved_seconds > copy_seconds else copies

    def plan(
        self,
        trace: Trace,
        size: ExpertSize,
        topology: Topology,
        *,
        backward: bool = False,
        past: Sequence[Tensor] = (),
        owner: Tensor | None = None,
    ) -> DevicePlan:
        """Return what one batch sends and computes, as steps.

        owner: (L, E), the device that keeps each expert, in order if not given.
        """
        devices, nodes = topology.devices, topology.nodes()
        owner = in_order(trace.layers, trace.experts, devices) if owner is None else owner
        home = homes(trace, devices)
        row = ranks_on_device(home)  # a layer knows its process's rows alone
        forward: list[PlanStep] = []
        back: list[PlanStep] = []
        after: dict[str, tuple[str, ...]] = {}
        for layer in range(trace.layers):
            expert = trace.expert[:, layer]
            load = _loads(expert, home, trace.experts, devices)
            holds = self.holds([batch[layer] for batch in past], load, owner[layer], size, topology)
            target = destinations(expert, home, holds, nodes, row)
            # The exchange of rows itself is as in plain expert parallelism, with more devices to
            # choose from.
            (counts, dispatch, product, combine), turned = layer_steps(
                layer, home, target, size, devices
            )
            load_bytes = off_diagonal(torch.full((devices, devices), trace.experts * INDEX))
            loads = PlanStep(f"{layer}.loads", layer, "loads", "link", bytes=load_bytes)
            # The sparse all-gather: weights go from owners to the holders of copies.
            sent = Placement.of(owner[layer][None], devices).moved(
                Placement(owner[layer][None], holds[None]), size.weights
            )
            gather = PlanStep(f"{layer}.gather", layer, "gather", "link", bytes=sent)
            after[product.name] = (dispatch.name, gather.name)
            if self.calibrate:  # the loads decide who comes
                forward += [loads, gather, counts, dispatch, product, combine]
            elif layer:  # gathered while the layer before is computed
                forward.insert(len(forward) - 2, gather)
                forward += [loads, counts, dispatch, product, combine]
            else:
                after[loads.name] = ()
                forward += [gather, loads, counts, dispatch, product, combine]
            again = replace(gather, name=f"{layer}.again", phase="again")
            # The sparse reduce-scatter: gradients of copies take the ways of the gather backwards.
            reduce = replace(
                gather,
                name=f"{again.name if self.rematerialise else gather.name}.back",
                phase="reduce",
                bytes=sent.T.contiguous(),
            )
            extra = [again] if self.rematerialise else []
            back = [turned[0], *extra, turned[1], reduce, turned[2], *back]
        return DevicePlan(lined_up(forward + back if backward else forward, after), devices)

    def shard(
        self, experts: Experts, wire: Wire, topology: Topology, layers: int = 1
    ) -> FssdpExperts:
        """Copy the experts of a layer that this process owns: at first consecutive ones."""
        check_devices(topology, wire)
        owner = in_order(1, experts.experts, topology.devices)[0]
        return FssdpExperts(stacked(experts), self, wire, topology, owner)


def in_order(layers: int, experts: int, devices: int) -> Tensor:
    """Deal experts out in order: each device owns consecutive ones, as evenly as can be.

    layers: L; experts: E, of each layer; devices: D. Returns (L, E), the device of each expert.
    """
    return (torch.arange(experts) * devices // experts).repeat(layers, 1)


def _loads(expert: Tensor, home: Tensor, experts: int, devices: int) -> Tensor:
    """Count the pairs (token, expert) of each device's tokens with each expert, (D, E)."""
    # expert: (N, k), -1 = none; home: (N,), the device of each token
    row, place = (expert >= 0).nonzero(as_tuple=True)
    # a bin for each (device, expert)
    index = home[row] * experts + expert[row, place].long()
    return index.bincount(minlength=devices * experts).view(devices, experts)


class FssdpExperts(Sharded):
    """E experts: this process owns some, and holds copies of others for a batch.

    past: loads (E,) of the newest batches in training.  See `Fssdp`.
    """

    def __init__(
        self,
        experts: Cuttable,
        settings: Fssdp,
        wire: Wire,
        topology: Topology,
        owner: Tensor,
    ) -> None:
        """Copy the experts of a layer that this process owns."""
        # each expert is held by its owner alone, between batches
        holds = owner[None] == torch.arange(wire.world)[:, None]
        mine = holds[wire.rank].nonzero().flatten()
        super().__init__(
            cut(experts, mine),
            holds,
            group=wire.group,
            nodes=topology.nodes(),
            meter=wire.meter,
            layer=wire.layer,
        )
        self.local: Cuttable
        self.wire, self.settings, self.topology = wire, settings, topology
        self.owner: Tensor = owner
        self.past: list[Tensor] = []
        self.size, self.outputs = size_of(experts), experts.outputs

    def mix(self, x: Tensor, routing: Routing, numbers: Tensor | None = None) -> Tensor:
        """Compute sum_e G_te f_e(x_t) for this process's rows x_t, f_e all processes' experts.

        Loads are exchanged, copies of busy experts chosen for this batch, and rows sent to them.
        """
        counts = routing.expert.bincount(minlength=self.experts)
        load = self.wire.told(counts[None], "loads").view(self.world, -1).cpu()  # as owners are
        holds = self.settings.holds(self.past, load, self.owner, self.size, self.topology)
        # Loads of an evaluation say nothing of the training's next batch.
        if self.training:
            self.past = [*self.past, load.sum(0)][-self.settings.window :]
        held_experts = holds[self.rank].nonzero().flatten()
        # expert -> its place among those held here
        place = (holds[self.rank].cumsum(0) - 1).to(x.device)

        def computed(rows: Tensor, local_routing: Routing) -> Tensor:
            """Compute rows that came here from any process, by the experts that are here.

            rows: (M, d); local_routing: their experts, as numbers among all E.
            """
            # numbers among all experts become places among those held here
            local_routing = replace(
                local_routing, expert=place[local_routing.expert], experts=len(held_experts)
            )
            return self._computed(rows, local_routing, holds)

        return self.sent(x, routing, None, holds, computed)

    def _computed(self, rows: Tensor, local_routing: Routing, holds: Tensor) -> Tensor:
        """Compute received rows (M, d) by the experts that this process holds for the batch."""

        # holds: (D, E) bool, which process holds which expert
        def with_copies(rows: Tensor, weight: Tensor, mine: Tensor, phase: str) -> Tensor:
            """Gather copies of the held experts' weights from their owners, and compute rows."""
            copies = sparse_gather(mine, self.owner, holds, self.wire, phase)
            reweighted = replace(local_routing, weight=weight)
            # A process without copies or rows must still take part in the exchanges of the
            # backward: an empty sum ties its output to all inputs.
            tied = copies[:0].sum() + rows[:0].sum() + weight[:0].sum()  # 0, with all gradients
            if not len(copies):
                return rows.new_zeros(0, self.outputs) + tied
            having_them = having(self.local, unpacked(copies, self.local), len(copies))
            return having_them.mix(rows, reweighted) + tied

        mine = packed(self.local)
        if self.settings.rematerialise and torch.is_grad_enabled():
            outputs: Any = _Again.apply(rows, local_routing.weight, mine, with_copies)
            return cast(Tensor, outputs)
        return with_copies(rows, local_routing.weight, mine, "gather")

    def lot(self, rank: int) -> tuple[Tensor, int, int]:
        return (self.owner == rank).nonzero().flatten(), 0, 1

    def due(self, step: int) -> bool:
        """Return True every `reshard` steps, if there are loads to choose new owners by."""
        interval = self.settings.reshard
        return bool(interval and self.past) and step % interval == 0

    def new_owners(self, layers: Sequence[FssdpExperts]) -> Tensor:
        """Choose owners (L, E) that even out the mean loads of the newest batches."""
        load = torch.stack([torch.stack(part.past).double().mean(0) for part in layers])
        return by_load(load, self.nodes, self.settings.hottest).owner

    @torch.no_grad()
    def moved(self, rows: Tensor, owner: Tensor) -> Tensor:
        """Send experts' rows to future owners, in every process; return those that came here."""
        holds = owner[None] == torch.arange(self.world)[:, None]
        came = sparse_gather(rows.detach().flatten(1), self.owner, holds, self.wire, "reshard")
        return came.view(len(came), *rows.shape[1:])

    def set_owner(self, owner: Tensor) -> None:
        self.owner, self.holds = owner, owner[None] == torch.arange(self.world)[:, None]
        self.own = self.holds[self.rank].cumsum(0) - 1
        self.local.experts = int(self.holds[self.rank].sum())

    def _check_copies(self) -> None:
        """Accept copies: they last one batch, and their gradients go to the owners."""


class _Again(torch.autograd.Function):
    """A product with weights gathered for the forward, and again for the backward."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, mine: Tensor, product: Callable[..., Tensor]
    ) -> Tensor:
        """Compute product(rows, weight, mine, "gather"), and save its three tensors alone.

        rows: (M, d); weight: (M, k), of the rows' gates; mine: weights of the experts owned here.
        """
        # Only the owner's weights are saved: the copies are freed, and gathered again when the
        # backward needs them.
        ctx.save_for_backward(rows, weight, mine)
        ctx.product, ctx.precision = product, _autocast_as_here(rows.device.type)
        return product(rows, weight, mine, "gather")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the product once more, with weights gathered again, and return its gradients."""
        # The product is computed once more, with gradients this time, as in activation
        # checkpointing.
        saved = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad(), ctx.precision():
            outputs = ctx.product(*saved, "again")
        return *torch.autograd.grad(outputs, saved, grads[0]), None


def _autocast_as_here(device: str) -> Callable[[], AbstractContextManager[object]]:
    """Return a factory of the present autocast context, for a backward outside of it."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return lambda: torch.autocast(device, dtype, enabled)


def sparse_gather(mine: Tensor, owner: Tensor, holds: Tensor, wire: Wire, phase: str) -> Tensor:
    """Gather the weights of the experts that this process is to hold from their owners.

    mine: (own, P), P weights of each expert owned here, by expert; owner: (E,), the process that
      owns each expert; holds: (D, E) bool, which process is to hold which expert.  -> (held, P), by
      expert. In the backward, owners add up the gradients of all copies.
    """
    rank, world = wire.rank, wire.world
    owned = owner == rank
    place = owned.cumsum(0) - 1
    send = [(holds[receiver] & owned).nonzero().flatten() for receiver in range(world)]
    came = [(holds[rank] & (owner == sender)).nonzero().flatten() for sender in range(world)]
    # Messages are ordered by receiver, and within a message by expert.
    rows = mine[place[torch.cat(send)]]
    received = wire.send(rows, [len(e) for e in send], [len(e) for e in came], phase)
    # They arrive ordered by sender; the caller expects them by expert.
    return received[torch.cat(came).argsort()]


CARD = Card(
    "fssdp",
    kind="parallel",
    config=Fssdp,
    paper=Paper(
        "2502.02581",
        2025,
        "Hecate: Unlocking Efficient Sparse Model Training via Fully Sharded Sparse Data "
        "Parallelism",
    ),
    tiny={"memory": 1, "hottest": 3, "rematerialise": True},
    summary="Copies of the busiest experts are gathered for each batch, then forgotten.",
    family="experts on several devices",
    names=("Hecate",),
)
