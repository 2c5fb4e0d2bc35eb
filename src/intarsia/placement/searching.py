"""A placement for a trace, by a search, with what it is worth on sequences that it did not see."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ..core.errors import ConfigError
from .moetuner import MoeTuner
from .placement import Placement
from .topology import Topology
from .trace import Trace


@runtime_checkable
class PlacementSearch(Protocol):
    """Settings of a search: deterministic, a placement of every expert of every layer."""

    def place(self, trace: Trace, topology: Topology) -> Placement: ...


def place(trace: Trace, topology: Topology | int, by: PlacementSearch | None = None) -> Placement:
    """Where each expert of each layer shall live.

    topology: the devices, or their number if all links are alike.  by: `MoeTuner()` if not given,
    `JointSwaps()`, `Eplb()` or `ExFlow()`.
    `quality(trace, placement)` says what it is worth: ask it of a part of the trace that `place`
    was not given (`trace.split()`), since loads change with the text.

    Raises: ConfigError for what is no search, and for devices that do not divide the experts.
    """
    search = MoeTuner() if by is None else by
    if isinstance(search, type) or not isinstance(search, PlacementSearch):
        got, fix = repr(by), "For example: place(trace, 8, intarsia.placement.MoeTuner())"
        raise ConfigError("by", got=got, want="the settings of a search", fix=fix)
    devices = Topology.uniform(topology) if isinstance(topology, int) else topology
    return search.place(trace, devices)
