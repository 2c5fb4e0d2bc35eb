"""Equal blocks: tables with so many places for each expert, and their exchange within a group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..core import Routing
from ..core.errors import ConfigError
from ..placement.engines import INDEX
from ..placement.plan import PlanStep
from ..processes.exchange import Wire

EXCHANGES = ("flat", "hierarchical")


def agreed_capacity(routing: Routing, wire: Wire, multiple: int) -> int:
    """Agree with all processes on a capacity C: how many rows an expert takes from each process.

    routing: pairs (token, expert) of this process's rows; multiple: C is a multiple of it. C is the
      largest load of an expert in any process, 1 at least, rounded up: no pair is dropped.
    """
    # the largest load in this process; the largest of all processes decides
    load = routing.expert.bincount(minlength=routing.experts).max().reshape(1)
    return rounded_up(int(wire.told(load, "counts").max()), multiple)


def planned_capacity(expert: Tensor, rows: Tensor, experts: int, multiple: int) -> int:
    """Compute C for a recorded routing: how many rows an expert takes from each device.

    expert: (N, k), the experts of each row, -1 = none; rows: (D, N) bool, which device has which
      rows; experts: E; multiple: C is a multiple of it. Processes that carry the routing out agree
      on the same C, see `agreed_capacity`.
    """
    # pairs of each device with each expert; the largest number decides
    loads = [
        expert[mask][expert[mask] >= 0].long().bincount(minlength=experts).max() for mask in rows
    ]
    return rounded_up(int(torch.stack(loads).max()), multiple)


def rounded_up(count: int, multiple: int) -> int:
    """Return the least multiple of `multiple` that is at least `count`, and above 0."""
    return -(-max(1, count) // multiple) * multiple


def counts_step(layer: int, devices: int) -> PlanStep:
    """Return the step of a plan in which D processes exchange `agreed_capacity`'s counts."""
    sent = torch.full((devices, devices), INDEX).fill_diagonal_(0)
    return PlanStep(f"{layer}.counts", layer, "counts", "link", bytes=sent)


@dataclass(frozen=True)
class PairTable:
    """Pairs in their places, by expert and then by token.  place: (N,) of E C."""

    routing: Routing
    place: Tensor
    capacity: int

    @classmethod
    def of(cls, routing: Routing, capacity: int) -> PairTable:
        """Give each pair (token, expert) of a routing a place in a table with C rows an expert.

        routing: N pairs; capacity: C, at least the number of pairs of the busiest expert.
        """
        # A stable sort keeps the order of tokens within an expert, so that the table does not
        # depend on the device.
        order = routing.expert.argsort(stable=True)
        expert = routing.expert[order]
        load = expert.bincount(minlength=routing.experts)
        # A pair's position within its expert: its position among all, minus the pairs of the
        # experts before.
        inside = torch.arange(len(order), device=order.device) - (load.cumsum(0) - load)[expert]
        place = torch.empty_like(order)
        place[order] = expert * capacity + inside
        return cls(routing, place, capacity)

    def fill(self, x: Tensor) -> Tensor:
        """Fill the table: the row of each pair (token, expert) in its place, zeros elsewhere.

        x: (T, d), the rows of all tokens.  -> (E, C, d), E experts with C places each.
        """
        rows = x.new_zeros(self.routing.experts * self.capacity, x.shape[-1])
        rows = rows.index_copy(0, self.place, x.index_select(0, self.routing.token))
        return rows.view(self.routing.experts, self.capacity, -1)

    def combine(self, outputs: Tensor) -> Tensor:
        """Add up the experts' outputs for each token t: y_t = sum_e G_te f_e(x_t).  -> (T, out).

        outputs: (E, C, out), what expert f_e returned for the row in each place of the table; G_te:
          the routing's weight of expert e for token t.
        """
        outputs = outputs.flatten(0, 1)
        # Each pair reads its own output and is scaled by its gate weight; pairs of a token are then
        # added up.
        pairs = outputs.index_select(0, self.place) * self.routing.weight[:, None]
        out = pairs.new_zeros(self.routing.tokens, outputs.shape[-1])  # of weights wider than rows
        return out.index_add(0, self.routing.token, pairs)


@dataclass(frozen=True)
class Swap:
    """An all-to-all in a group: each member sends a block of equal size to every other.

    members: ascending processes, this one among them; inner: so many in a row are on one node, to
    exchange inside first, then between equal places of the nodes (2DH); 1: in one step.
    """

    members: tuple[int, ...]
    inner: int = 1

    def run(self, blocks: Tensor, wire: Wire, phase: str) -> Tensor:
        """Exchange blocks of equal size in a group: send one to each member, get one from each.

        blocks: (G, m, ...), one for each of the G members. Returns the blocks that came, by sender,
          (G, m, ...).
        """
        if len(self.members) == 1:
            return blocks
        if self.inner == 1:
            return self._exchange(blocks, self.members, wire, phase)
        size, inner = blocks.shape[1:], self.inner
        index = self.members.index(wire.rank)
        # 2DH: the first exchange, inside the node, hands each neighbour all that goes to its place
        # on any node; the second, across nodes, is between equal places.
        node, place = divmod(index, inner)
        near = self.members[node * inner : (node + 1) * inner]
        # Blocks are ordered by destination: N nodes of I members. Sorted by place on the node
        # first, the blocks for one neighbour are contiguous.
        by_node = blocks.view(-1, inner, *size).transpose(0, 1)  # (I, N, m, ...)
        received = self._exchange(by_node.flatten(1, 2), near, wire, f"{phase}_inside")
        received = received.view(inner, -1, *size).transpose(0, 1)  # (N, I, m, ...): from whom
        received = self._exchange(
            received.flatten(1, 2), self.members[place::inner], wire, f"{phase}_across"
        )
        return received.reshape(-1, *size)

    def _exchange(self, blocks: Tensor, members: Sequence[int], wire: Wire, phase: str) -> Tensor:
        """Exchange blocks (members, m, ...), by receiver, with some processes in one step."""
        counts = [blocks.shape[1] * (rank in members) for rank in range(wire.world)]
        return wire.send(blocks.flatten(0, 1), counts, counts, phase).view(blocks.shape)

    def gather(self, rows: Tensor, wire: Wire, phase: str) -> Tensor:
        """Collect the rows of all G members of the group, in every member.

        rows: (m, ...), this member's -> (G, m, ...); wire: sends them. In the backward, a member
          adds up the gradients of its rows from all.
        """
        # every member gets a copy of the rows
        return self.run(rows.expand(len(self.members), *rows.shape), wire, phase)

    def add(self, blocks: Tensor, wire: Wire, phase: str) -> Tensor:
        """Send each member its block, and add up the blocks that came here.

        blocks: (G, m, ...), this process's for each of the G members.  -> (m, ...).
        """
        # every member sends the block of this process here
        return self.run(blocks, wire, phase).sum(0)

    def sent(self, rank: int, devices: int, block: int) -> dict[str, Tensor]:
        """Return the bytes that a member sends to every device, by stage of the exchange.

        devices: D. Stages are "" for an exchange in one step, or "_inside" and "_across" nodes.  ->
          stage -> (D,) int64.
        """
        groups = [("", self.members, block)]
        if self.inner > 1:
            node, place = divmod(self.members.index(rank), self.inner)
            near = self.members[node * self.inner : (node + 1) * self.inner]
            far = self.members[place :: self.inner]
            # The same bytes travel twice, but a member sends a message to each one of its node, and
            # then to one of each node, instead of one to everybody.
            groups = [("_inside", near, block * len(far)), ("_across", far, block * len(near))]
        by_stage: dict[str, Tensor] = {}
        for stage, members, size in groups:
            by_stage[stage] = torch.zeros(devices, dtype=torch.int64)
            by_stage[stage][[m for m in members if m != rank]] = size
        return by_stage


def swaps_of(groups: Iterable[Sequence[int]], nodes: Tensor, exchange: str) -> dict[int, Swap]:
    """Prepare all-to-all exchanges within groups of processes: rank -> the `Swap` of its group.

    groups: disjoint sets of all processes; nodes: (D,), the node of each process; exchange: "flat"
      or "hierarchical", first inside a node, then across nodes.
    Raises: ConfigError where a hierarchical exchange finds nodes with other numbers of members.
    """
    swaps: dict[int, Swap] = {}
    for members in groups:
        inner = 1
        if exchange == "hierarchical":
            member_nodes = nodes[list(members)].tolist()
            inner = member_nodes.count(member_nodes[0])
            cuts = [member_nodes[i : i + inner] for i in range(0, len(member_nodes), inner)]
            # Every run of `inner` members must be exactly one node: `Swap.run` finds a member's
            # node by dividing its index by `inner`.
            uneven = any(len(set(c)) > 1 or len(c) < inner for c in cuts)
            if uneven or len(cuts) > len(set(member_nodes)):
                got = f"processes {list(members)} on nodes {member_nodes}"
                want = "as many in a row on each"
                fix = "Use exchange='flat', or start them node by node."
                raise ConfigError("hierarchical exchange", got=got, want=want, fix=fix)
            # On a single node there is nothing to exchange across nodes: one step is enough.
            inner = 1 if inner == len(members) else inner
        swaps |= dict.fromkeys(members, Swap(tuple(members), inner))
    return swaps


def swap_steps(
    swaps: dict[int, Swap], layer: int, phase: str, block: int, *, backward: bool = False
) -> list[PlanStep]:
    """Return the steps of a plan for an all-to-all exchange that all processes take part in.

    swaps: rank -> its exchange with the members of its group; layer, phase: name the steps; block:
      the bytes that a member has for another one; backward: True returns the steps of the
      gradients, from receivers to senders, in reverse order. There is no step where every process
      exchanges with itself alone.
    """
    devices = len(swaps)
    if all(len(swap.members) == 1 for swap in swaps.values()):
        return []
    rows = [swaps[rank].sent(rank, devices, block) for rank in range(devices)]
    steps: list[PlanStep] = []
    for stage in rows[0]:
        sent = torch.stack([row[stage] for row in rows])
        name = f"{layer}.{phase}{stage}"
        # The gradient of a block travels from its receiver back to its sender: the matrix of bytes
        # is transposed.
        if backward:
            sent, name = sent.T.contiguous(), f"{name}.back"
        steps.append(PlanStep(name, layer, phase.rpartition(".")[2], "link", bytes=sent))
    # The last exchange in the forward comes back first.
    return steps[::-1] if backward else steps


class _Split(torch.autograd.Function):
    """A member's equal part of rows that all members share; gradients are concatenated."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, swap: Swap, wire: Wire, phase: str) -> Tensor:
        """Return this member's part (E, C / G, d) of the rows (E, C, d) that all G members have."""
        ctx.swap, ctx.wire, ctx.phase = swap, wire, phase
        return _own_part(rows, swap, wire)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Gather the gradient of all rows (E, C, d) from the members' parts (E, C / G, d)."""
        return _gathered(grads[0], ctx.swap, ctx.wire, f"{ctx.phase}.back"), None, None, None


class _Join(torch.autograd.Function):
    """The members' parts put together, alike in all; each gradient is its own part."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, swap: Swap, wire: Wire, phase: str) -> Tensor:
        """Put the members' parts together, (E, C / G, d) -> (E, C, d), the same in all."""
        ctx.swap, ctx.wire = swap, wire
        return _gathered(rows, swap, wire, phase)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Return this member's part (E, C / G, d) of the gradient (E, C, d)."""
        return _own_part(grads[0], ctx.swap, ctx.wire), None, None, None


class _Alike(torch.autograd.Function):
    """Rows that all members have alike; their gradients are added up, in order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, swap: Swap, wire: Wire, phase: str) -> Tensor:
        """Return the rows; all members of a group have a copy of them."""
        ctx.swap, ctx.wire, ctx.phase = swap, wire, phase
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the sum of all members' gradients, the same in each."""
        gradients = ctx.swap.gather(grads[0].contiguous(), ctx.wire, f"{ctx.phase}.back")
        return gradients.sum(0), None, None, None


def _own_part(rows: Tensor, swap: Swap, wire: Wire) -> Tensor:
    """Return this member's part of the second axis of rows, (E, C, d) -> (E, C / G, d)."""
    # the members in order have consecutive parts
    length = rows.shape[1] // len(swap.members)
    return rows.narrow(1, swap.members.index(wire.rank) * length, length).contiguous()


def _gathered(rows: Tensor, swap: Swap, wire: Wire, phase: str) -> Tensor:
    """Gather the members' parts along the second axis, (E, C / G, d) -> (E, C, d)."""
    return torch.cat(list(swap.gather(rows.contiguous(), wire, phase)), 1)


def split(rows: Tensor, swap: Swap, wire: Wire, phase: str) -> Tensor:
    """Return this member's part of rows that all members have.  (E, C, d) -> (E, C / G, d).

    rows: the same in all members, divided along the second axis; swap: the exchange of the group,
      which lists its G members. In the backward, the parts' gradients are gathered.
    """
    return cast(Tensor, _Split.apply(rows, swap, wire, phase))


def join(rows: Tensor, swap: Swap, wire: Wire, phase: str) -> Tensor:
    """Concatenate the members' parts, the inverse of `split`.  (E, C / G, d) -> (E, C, d).

    rows: this member's part; swap: the exchange of the group of G members; wire: sends it; phase:
      its name in the byte counts.
    """
    return cast(Tensor, _Join.apply(rows, swap, wire, phase))


def alike(rows: Tensor, swap: Swap, wire: Wire, phase: str) -> Tensor:
    """Return `rows` unchanged; in the backward, add up their gradients over a group's members."""
    return cast(Tensor, _Alike.apply(rows, swap, wire, phase))


def block_bytes(rows: int, width: int, item: int) -> int:
    return math.prod((rows, width, item))
