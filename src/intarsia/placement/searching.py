"""Search of a placement for a trace."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from ..core.errors import ConfigError
from .moetuner import MoeTuner
from .placement import Placement
from .topology import Topology
from .trace import Trace


@runtime_checkable
class PlacementSearch(Protocol):
    """Settings of a deterministic search that places every expert of every layer."""

    def place(self, trace: Trace, topology: Topology) -> Placement: ...


def place(trace: Trace, topology: Topology | int, by: PlacementSearch | None = None) -> Placement:
    """Choose a device for each expert of each layer, to suit a recorded routing.

    trace: the experts of each token. topology: the devices, or their number if all links are alike.
      by: settings of the search, `MoeTuner()` by default, `JointSwaps()`, `Eplb()` or `ExFlow()`.
    Measure the result by `quality(trace, placement)` on a held-out part of the trace
    (`trace.split()`), since loads change with the text.

    Raises: ConfigError if `by` is no search, and for devices that do not divide the experts.
    """
    search = MoeTuner() if by is None else by
    if isinstance(search, type) or not isinstance(search, PlacementSearch):
        got, fix = repr(by), "For example: place(trace, 8, intarsia.placement.MoeTuner())"
        raise ConfigError("by", got=got, want="the settings of a search", fix=fix)
    devices = Topology.uniform(topology) if isinstance(topology, int) else topology
    return search.place(trace, devices)
