"""Plain expert parallelism (GShard, arXiv:2006.16668): each expert on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..core import Card, Paper
from ..mixtures.experts import Experts
from ..placement.engines import ExpertSize, expert_parallel
from ..placement.placement import Placement
from ..placement.plan import DevicePlan
from ..placement.topology import Topology
from ..placement.trace import Trace
from ..processes.exchange import Wire
from .sharded import Sharded, shard
from .strategy import Strategy, check_devices


@dataclass(frozen=True)
class ExpertParallel(Strategy):
    """Experts in order, E / D on each device; a token's row goes to the devices of its experts.

    A row goes once to each such device, which adds its experts up, and comes back. No token is
    dropped, no copy is held, weights never move: the device with the busiest experts is waited for.

    Raises: ConfigError in `plan` and `shard` unless devices divide experts.
    Not for uneven loads: see `Fssdp`, which gathers copies of the busiest experts for a batch.
    Source: arXiv:2006.16668, section 2.2, without its capacity.
    """

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
        placed = Placement.contiguous(trace.layers, trace.experts, topology.devices)
        return expert_parallel(trace, placed, size, nodes=topology.nodes(), backward=backward)

    def shard(self, experts: Experts, wire: Wire, topology: Topology, layers: int = 1) -> Sharded:
        """Copy this process's experts of a layer, E / D in order; the given experts stay whole."""
        check_devices(topology, wire)
        placed = Placement.contiguous(1, experts.experts, wire.world)
        part = shard(experts, placed, 0, group=wire.group, nodes=topology.nodes(), meter=wire.meter)
        # the layer's number names its exchanges
        part.layer = wire.layer
        return part


CARD = Card(
    "ep",
    kind="parallel",
    config=ExpertParallel,
    paper=Paper(
        "2006.16668",
        2020,
        "GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding",
    ),
    summary="Each expert on one device; rows go to it and come back.",
    family="experts on several devices",
    names=("GShard", "expert parallelism"),
)
