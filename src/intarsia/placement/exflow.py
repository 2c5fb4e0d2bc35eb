"""ExFlow (arXiv:2401.08383): experts that follow each other live on one device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core import Card, Paper
from ..core.schema import check, setting
from .balance import affinity, transitions
from .placement import Placement, check_divides
from .topology import Topology
from .trace import Trace


@dataclass(frozen=True)
class ExFlow:
    """Placement search: max sum_l (transitions after layer l that stay on a device).

    Each device has E / D experts of each layer. The programme is solved exactly for one layer given
    its neighbours (an assignment of experts to places), layer after layer until nothing improves.
    Loads are ignored.

    Raises: ConfigError for no sweeps; in `place`, for devices that do not divide the experts.
    Not for engines where rows come back after each layer, which have no such traffic.
    Source: arXiv:2401.08383, section 4.
    """

    sweeps: int = setting(20, "The passes over the layers at most.", least=1)

    def __post_init__(self) -> None:
        check(self)

    def place(self, trace: Trace, topology: Topology) -> Placement:
        """Choose a device for every expert so that most tokens stay on a device between layers.

        Each device gets E / D experts of each layer. trace: recorded routing, from which the
        transitions between layers follow; topology: D devices.
        Raises: ConfigError if D does not divide the experts.
        """
        from scipy.optimize import linear_sum_assignment  # here, as it takes a third of a second

        devices = topology.devices
        check_divides(trace.experts, devices)
        owner = Placement.contiguous(trace.layers, trace.experts, devices).owner.clone()
        per_device, counts = trace.experts // devices, transitions(trace)
        for _ in range(self.sweeps):
            before = owner.clone()
            for layer in range(trace.layers):
                pull = affinity(counts, owner, layer, devices)  # (E, D)
                now = float(pull.gather(1, owner[layer][:, None]).sum())
                # one assignment of E experts to E places; a device has E / D equal columns
                places = pull.repeat_interleave(per_device, 1).numpy()
                expert, place = linear_sum_assignment(places, maximize=True)
                # a margin above rounding errors, so that equal assignments do not alternate for
                # ever
                if float(places[expert, place].sum()) > now * (1 + 1e-12):
                    owner[layer] = torch.from_numpy(place) // per_device
            if torch.equal(before, owner):
                break
        return Placement.of(owner, devices)


CARD = Card(
    "exflow",
    kind="placement",
    config=ExFlow,
    paper=Paper(
        "2401.08383",
        2024,
        "Exploiting Inter-Layer Expert Affinity for Accelerating Mixture-of-Experts Model "
        "Inference",
    ),
    summary="Experts that tokens visit one after the other, on one device.",
    family="placement of experts",
    names=("ExFlow",),
)
