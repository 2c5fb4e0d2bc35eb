"""Experts of a layer on several processes: rows go to their experts and come back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core import Routing
from ..core.errors import ConfigError
from ..mixtures.experts import Experts
from ..placement.engines import destinations
from ..placement.placement import Placement
from ..processes.exchange import Group, Meter, exchanged
from .layout import OwnExperts


class Sharded(OwnExperts):
    """E experts; this process computes the ones that it holds.

    local: those, in ascending order; holds: (D, E) bool, who holds which; nodes: (D,), of the
    processes, one if not given; meter: counts bytes as the steps `layer`.counts, .dispatch and
    .combine of `placement.expert_parallel`.
    Each process brings its own rows and routing, and gets the mixture of its own rows. A row goes
    once to each process that computes some of its experts, which weighs and adds them up. Sums
    over processes come in another order than in one: integers are equal, others up to rounding. A
    process without rows takes part all the same.

    Raises: ConfigError for local experts that are not those held; in a forward with gradients, for
    copies: their gradients would have to be added up at their owners.
    """

    def __init__(
        self,
        local: Experts,
        holds: Tensor,
        *,
        group: Group = None,
        nodes: Tensor | None = None,
        meter: Meter | None = None,
        layer: int = 0,
    ) -> None:
        super().__init__()
        self.local: Experts = local
        self.holds, self.group = holds.bool(), group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self.experts, self.layer, self.meter = holds.shape[1], layer, meter
        self.nodes = torch.zeros(self.world, dtype=torch.int64) if nodes is None else nodes
        count = int(self.holds[self.rank].sum())
        if len(holds) != self.world or local.experts != count:
            got = f"{local.experts} experts of {count}, on {self.world} of {len(holds)} processes"
            fix = "Take them from intarsia.parallel.shard."
            raise ConfigError("sharded experts", got=got, want="those that it holds", fix=fix)
        self.own = self.holds[self.rank].cumsum(0) - 1  # expert -> its place among the local ones

    def mix(self, x: Tensor, routing: Routing, numbers: Tensor | None = None) -> Tensor:
        """Compute sum_e G_te f_e(x_t) for this process's rows x_t, f_e all processes' experts.

        x: (T, d); routing: G_te, the weight of each of all E experts for row t; numbers: (T,), a
          number of each row, by which one of several copies of an expert is chosen in turn, None =
          0 ... T - 1.  -> (T, out).
        """
        self._check_copies()

        def computed(rows: Tensor, local_routing: Routing) -> Tensor:
            """Compute rows that came here from any process, by the experts that are here.

            rows: (M, d); local_routing: their experts, as numbers among all E.
            """
            # numbers among all experts become places among those held here
            place = self.own.to(local_routing.expert.device)
            renumbered = replace(
                local_routing, expert=place[local_routing.expert], experts=self.local.experts
            )
            return self.local.mix(rows, renumbered)

        return self.sent(x, routing, numbers, self.holds, computed)

    def sent(
        self,
        x: Tensor,
        routing: Routing,
        numbers: Tensor | None,
        holds: Tensor,
        computed: Callable[[Tensor, Routing], Tensor],
    ) -> Tensor:
        """Send rows to the processes that hold their experts, compute them there, and add them up.

        x: (T, d), this process's rows; routing: which of all E experts each row has, with what
          weight; numbers: (T,), a number of each row, by which one of several copies of an expert
          is chosen in turn, None = 0 ... T - 1; holds: (D, E) bool, which process holds which
          expert; computed: called as f(rows, routing) with the rows that came here from all
          processes, and their routing; returns their weighted outputs.
        Returns the outputs of this process's rows, (T, out).
        """
        number = torch.arange(len(x)) if numbers is None else numbers
        sender = torch.full_like(routing.expert, self.rank)
        pair_number = number.to(sender.device)[routing.token]
        # Step 1: the process that computes each pair, by the copies that there are.
        target = destinations(routing.expert[:, None], sender, holds, self.nodes, pair_number)[:, 0]
        order = (target * max(len(x), 1) + routing.token).argsort(stable=True)
        target, token = target[order], routing.token[order]
        # Step 2: a row goes once to each process, however many of its experts are there; the pairs
        # refer to it by its position in the message.
        once, row = (target * max(len(x), 1) + token).unique_consecutive(return_inverse=True)
        place, token = once // max(len(x), 1), once % max(len(x), 1)
        rows, pairs = (torch.bincount(t, minlength=self.world) for t in (place, target))
        row = row - (rows.cumsum(0) - rows)[target]  # within its message
        # Step 3: sizes are exchanged first, as every process must know how much to receive.
        came = self._counts(torch.stack([rows, pairs], 1))
        sizes = rows.tolist(), came[:, 0].tolist()
        paired = pairs.tolist(), came[:, 1].tolist()
        # Step 4: rows, then the position and expert of each pair, then its gate weight, which takes
        # a gradient.
        received_rows = self._send(x[token], *sizes, "dispatch")
        headers = torch.stack([row, routing.expert[order]], 1)
        headers = self._send(headers, *paired, "dispatch")
        weight = self._send(routing.weight[order], *paired, "dispatch")
        # Positions within a message become positions among all rows received.
        starts = came[:, 0].cumsum(0) - came[:, 0]
        received = headers[:, 0] + starts.repeat_interleave(came[:, 1])
        local_routing = Routing(received, headers[:, 1], weight, len(received_rows), self.experts)
        # Step 5: outputs, already summed over the experts of a process, come back row by row and
        # are added up at home.
        back = self._send(computed(received_rows, local_routing), sizes[1], sizes[0], "combine")
        return back.new_zeros(len(x), back.shape[1]).index_add(0, token, back)

    def lot(self, rank: int) -> tuple[Tensor, int, int]:
        return self.holds[rank].nonzero().flatten(), 0, 1

    def _check_copies(self) -> None:
        """Raise ConfigError for copies of an expert in a forward with gradients."""
        # Copies would be trained apart from each other.
        copies = bool((self.holds.sum(0) > 1).any())
        if copies and torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            got, want = "copies of experts in a forward with gradients", "one copy of each"
            fix = "Train with Eplb(0) or another placement without copies, or use torch.no_grad()."
            raise ConfigError("sharded experts", got=got, want=want, fix=fix)

    def _counts(self, mine: Tensor) -> Tensor:
        """Tell each process how many rows and pairs it will get from here: (D, 2) -> (D, 2)."""
        single = [1] * self.world
        return exchanged(mine, single, single, **self._exchange_options("counts"))

    def _send(self, rows: Tensor, send: list[int], receive: list[int], phase: str) -> Tensor:
        """Send the first send[0] rows to process 0, and so on; return the rows received."""
        return exchanged(rows, send, receive, **self._exchange_options(phase))

    def _exchange_options(self, phase: str) -> dict[str, Any]:
        return {"group": self.group, "meter": self.meter, "name": f"{self.layer}.{phase}"}


def shard(
    experts: Experts,
    placement: Placement,
    layer: int,
    *,
    group: Group = None,
    nodes: Tensor | None = None,
    meter: Meter | None = None,
) -> Sharded:
    """Copy the experts of a layer that a placement gives this process, as a `Sharded` module.

    experts: all of the layer, not changed; placement: which devices hold which experts; layer: the
      layer's number in the placement; group: the processes, None = all; nodes: (D,), the node of
      each process, None = all are on one; meter: counts the bytes.
    Raises: ConfigError for a placement of other experts, or another number of devices.
    """
    holds = placement.holds[layer]
    count = dist.get_world_size(group)
    if holds.shape != (count, experts.experts):
        got = f"{holds.shape[0]} devices and {holds.shape[1]} experts"
        want = f"{count} processes and {experts.experts} experts"
        raise ConfigError("placement", got=got, want=want, fix="Place for these processes.")
    local = copy.deepcopy(experts)
    local.keep(holds[dist.get_rank(group)].nonzero().flatten())
    return Sharded(local, holds, group=group, nodes=nodes, meter=meter, layer=layer)
