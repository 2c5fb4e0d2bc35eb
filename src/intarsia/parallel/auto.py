"""The strategy with the least simulated time, chosen for each layer before it is shared out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from ..core.checks import at_least
from ..core.errors import ConfigError, UnknownName
from ..core.registry import card, keys
from ..mixtures.experts import Experts
from ..placement.engines import ExpertSize
from ..placement.plan import DevicePlan
from ..placement.timeline import simulate
from ..placement.topology import Topology
from ..placement.trace import Trace
from ..processes.exchange import Group, Wire
from .deepspeed import DeepSpeed
from .ep import ExpertParallel
from .fssdp import Fssdp
from .layout import OwnExperts, size_of, stacked
from .strategy import Strategy
from .tutel import Tutel


@dataclass(frozen=True)
class Auto(Strategy):
    """`ExpertParallel`, `Fssdp`, `Tutel` or `DeepSpeed`, whichever the simulator says is fastest.

    tokens: of all processes' rows in a step; active: experts of a token. They are the batch that
    is simulated, with pairs that are drawn evenly, whatever is routed later: processes, and a plan
    and what carries it out, then choose alike. `fit` measures the links between its processes
    (`Topology.measured`) and gives them to it.

    Raises: ConfigError where none of the four can be, and for settings below 1.
    Not where loads are uneven and known: take `Fssdp`, or look at `intarsia simulate --plan auto`.
    """

    tokens: int = 4096
    active: int = 2

    def __post_init__(self) -> None:
        at_least("tokens", self.tokens, 1)
        at_least("active", self.active, 1)

    def plan(
        self,
        trace: Trace,
        size: ExpertSize,
        topology: Topology,
        *,
        backward: bool = False,
        past: Sequence[torch.Tensor] = (),
    ) -> DevicePlan:
        """Return what one batch sends and computes, as steps of the strategy that is fastest."""
        best = self.chosen(trace.experts, size, topology)
        return best.plan(trace, size, topology, backward=backward, past=past)

    def chosen(self, experts: int, size: ExpertSize, topology: Topology) -> Strategy:
        """Return the strategy with the least simulated time of forward and backward.

        experts: E of a layer; size: an expert's widths and bytes; topology: devices and links.
        """
        # A fixed seed: processes that choose on their own must simulate the same batch.
        draws = torch.Generator().manual_seed(0)
        # The experts with the k largest of E uniform draws are an even load.
        pairs = torch.rand(self.tokens, 1, experts, generator=draws)
        row, length = torch.arange(self.tokens), max(1, self.tokens // (4 * topology.devices))
        trace = Trace(
            pairs.topk(min(self.active, experts)).indices, experts, row // length, row % length
        )
        seconds: dict[Strategy, float] = {}
        refused = ConfigError("devices", got="no strategy", want="one", fix="Use fewer.")
        for strategy in (ExpertParallel(), Fssdp(), Tutel(), DeepSpeed()):
            try:
                plan = strategy.plan(trace, size, topology, backward=True)
            # A strategy that cannot divide these experts is no candidate; its error is raised only
            # if there is no other candidate.
            except ConfigError as error:
                refused = error
                continue
            seconds[strategy] = simulate(plan, topology).seconds
        if not seconds:
            raise refused
        # a dict keeps the order: of equals the first
        return min(seconds, key=lambda strategy: seconds[strategy])

    def links(self, world: int, group: Group = None) -> Topology:
        """Measure the links between the processes, on which the choice depends."""
        return Topology.measured(group)

    def shard(
        self, experts: Experts, wire: Wire, topology: Topology, layers: int = 1
    ) -> OwnExperts:
        """Return a module with this process's experts of a layer, by the fastest strategy."""
        best = self.chosen(stacked(experts).experts, size_of(experts), topology)
        return best.shard(experts, wire, topology, layers)


# SE-MoE's loads are known to its plan alone; of DeepSpeed's exchanges the coordinated one is named
NOT_NAMED = ("deepspeed", "semoe")
VARIANTS: Mapping[str, Any] = MappingProxyType(
    {"auto": Auto, "coordinated": partial(DeepSpeed, exchange="coordinated")}
)
NAMED = (*VARIANTS, *(key for key in keys("parallel") if key not in NOT_NAMED))


def strategy_named(name: str) -> Strategy:
    """Return the strategy that `intarsia fit --plan` calls by this name.  Raises: UnknownName."""
    if name not in NAMED:
        raise UnknownName("--plan", name, NAMED)
    return VARIANTS[name]() if name in VARIANTS else card(name).config()
