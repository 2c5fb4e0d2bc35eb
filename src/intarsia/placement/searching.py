"""Search of a placement for a trace."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.errors import ConfigError, DataError
from .eplb import Eplb
from .moetuner import MoeTuner
from .placement import Placement, check_divides
from .topology import Topology
from .trace import Trace


@runtime_checkable
class PlacementSearch(Protocol):
    """Settings of a deterministic search that places every expert of every layer."""

    def place(self, trace: Trace, topology: Topology) -> Placement: ...


def place(
    trace: Trace | Tensor, topology: Topology | int, by: PlacementSearch | None = None
) -> Placement:
    """Choose a device for each expert of each layer, to suit a recorded routing.

    trace: the experts of each token; or loads (L, E), the tokens of each expert, which `MoeTuner`
      and `Eplb` spread evenly: of traffic they say nothing. topology: the devices, or their number
      if all links are alike. by: settings of the search, `MoeTuner()` by default, `JointSwaps()`,
      `Eplb()` or `ExFlow()`.
    Measure the result by `quality(trace, placement)` on a held-out part of the trace
    (`trace.split()`), since loads change with the text.

    Raises: ConfigError if `by` is no search, and for devices that do not divide the experts.
    """
    search = MoeTuner() if by is None else by
    if isinstance(search, type) or not isinstance(search, PlacementSearch):
        got, fix = repr(by), "For example: place(trace, 8, intarsia.placement.MoeTuner())"
        raise ConfigError("by", got=got, want="the settings of a search", fix=fix)
    devices = Topology.uniform(topology) if isinstance(topology, int) else topology
    if isinstance(trace, Tensor):
        return _place_loads(trace, devices, search)
    return search.place(trace, devices)


def _place_loads(load: Tensor, topology: Topology, search: PlacementSearch) -> Placement:
    """Group the experts of each layer by their loads (L, E) alone."""
    if not isinstance(search, MoeTuner | Eplb):
        want, fix = "MoeTuner() or Eplb()", "Record a trace: intarsia.trace(model, texts)."
        raise ConfigError("by", got=f"{search} for loads alone", want=want, fix=fix)
    if load.dim() != 2 or not load.numel() or bool((load < 0).any()):
        got = f"{tuple(load.shape)}, least {load.min()}" if load.numel() else "none"
        want, fix = "(layers, experts), none below 0", "Count each expert's tokens."
        raise DataError("loads", got=got, want=want, fix=fix)
    if isinstance(search, Eplb):
        return search.place_loads(load, topology)
    check_divides(load.shape[1], topology.devices)
    clusters = [search.clusters(layer, topology.devices) for layer in load.double()]
    return Placement.of(torch.stack(clusters), topology.devices)
