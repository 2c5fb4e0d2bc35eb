"""Balance of experts over devices: largest load first, then swaps; and joint swaps as a search.

Loads alone are balanced by `longest_first` and `swap_until_even`. `JointSwaps` lowers the traffic
between devices under that balance; it is not from a paper, and is compared with MoETuner's
programmes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Card, Paper
from ..core.schema import check, setting
from .cost import mean_destinations
from .placement import Placement, check_divides
from .topology import Topology
from .trace import Trace

OBJECTIVES = ("home", "stay")
SMALLEST = 1e-9  # a swap must gain more than this share of the load
WIDER = 1.15  # factor between two slacks that `_place_for_home` tries


def longest_first(load: Tensor, devices: int) -> Tensor:
    """Assign each expert to a device, largest load first, always to the least loaded device.

    load: (E,), number of tokens of each expert; devices: D (each gets E / D experts). Returns the
      device of each expert, (E,) int64.
    Source: Graham 1969 (LPT), with equal counts.
    """
    room = [len(load) // devices] * devices
    # room: places left; total: load so far, both by device
    total = [0.0] * devices
    owner = torch.empty(len(load), dtype=torch.int64)
    values = load.tolist()
    for expert in sorted(range(len(values)), key=lambda e: (-values[e], e)):
        # ties go to the lowest number, so that all processes decide alike
        device = min((d for d in range(devices) if room[d]), key=lambda d: (total[d], d))
        owner[expert] = device
        room[device] -= 1
        total[device] += values[expert]
    return owner


def swap_until_even(load: Tensor, owner: Tensor, devices: int) -> Tensor:
    """Swap experts between devices until no swap makes the devices' loads more even.

    The best swap goes first; uneven is sum_d |T_d - mean|, T_d the load of device d. load: (E,),
    tokens of each expert; owner: (E,), the device of each expert at the start; devices: D. Returns
    the new owner, (E,).
    """
    load, owner = load.double(), owner.clone()
    mean = float(load.sum()) / devices
    for _ in range(len(load) ** 2):
        total = torch.zeros(devices, dtype=torch.float64).index_add(0, owner, load)
        off = total - mean
        # [a, b]: what a's device gains in load if experts a and b are swapped
        change = load[None, :] - load[:, None]
        # (E, E): |T_d - mean| of the two devices after and before experts a and b change places
        new = (off[owner][:, None] + change).abs() + (off[owner][None, :] - change).abs()
        old = off[owner].abs()[:, None] + off[owner].abs()[None, :]
        gain = torch.where(owner[:, None] != owner[None, :], old - new, 0.0)
        best = int(gain.argmax())
        if float(gain.flatten()[best]) <= SMALLEST * max(mean, 1.0):
            break
        a, b = divmod(best, len(load))
        owner[[a, b]] = owner[[b, a]]
    return owner


def affinity(
    transitions_after: Sequence[Tensor], owner: Tensor, layer: int, devices: int
) -> Tensor:
    """Return how much traffic each expert of a layer shares with each device, (E, D) float64.

    Traffic is counted in transitions: tokens that go from an expert of one layer to an expert of
    the next. transitions_after: (E, E) after each layer but the last; owner: (L, E), the device of
    each expert; devices: D.
    """
    traffic = torch.zeros(owner.shape[1], devices, dtype=torch.float64)
    if layer:
        traffic.index_add_(1, owner[layer - 1], transitions_after[layer - 1].T)
    if layer < len(transitions_after):
        traffic.index_add_(1, owner[layer + 1], transitions_after[layer])
    return traffic


def transitions(trace: Trace) -> list[Tensor]:
    """Count, for each two successive layers, the tokens that go from each expert to each, (E, E).

    Returns L - 1 matrices, float64.
    """
    return [trace.transitions(layer) for layer in range(trace.layers - 1)]


def swap_layer(
    load: Tensor, owner: Tensor, outside: Tensor, within: Tensor | None, slack: float
) -> tuple[Tensor, float]:
    """Swap pairs of a layer's experts while their total affinity with their own devices grows.

    load: (E,), tokens of each expert; owner: (E,), the device of each; outside: (E, D), affinity of
      each expert with each device because of other layers; within: (E, E), affinity of two experts
      of this layer, symmetric, or None; slack: no device's load may exceed slack times the mean, or
      the present maximum if that is larger. Returns the new owner (E,) and by how much the affinity
      grew.
    """
    load, owner, devices = load.double(), owner.clone(), outside.shape[1]
    cap = slack * float(load.sum()) / devices
    inside = None if within is None else within.double().clone().fill_diagonal_(0)
    gained = 0.0
    for _ in range(len(load) ** 2):
        # affinity of each expert to each device, (E, D), as the layer's experts lie now
        pull = outside
        if inside is not None:
            pull = outside.index_add(1, owner, inside)
        home = pull.gather(1, owner[:, None])  # (E, 1)
        # (E, E): what a gains on b's device; the transpose adds what b gains on a's
        across = pull[:, owner]  # of a, to the device of b
        gain = across - home + (across - home).T
        # after a swap the two are still apart, so this affinity is not gained
        if inside is not None:
            gain = gain - 2 * inside
        total = torch.zeros(devices, dtype=torch.float64).index_add(0, owner, load)
        highest = max(cap, float(total.max())) * (1 + 1e-12)
        # (E, E): the load of a's device after the swap; transposed, the load of b's device
        new = total[owner][:, None] - load[:, None] + load[None, :]
        fits = (new <= highest) & (highest >= new.T) & (owner[:, None] != owner[None, :])
        gain = torch.where(fits, gain, 0.0)
        best = int(gain.argmax())
        gain_of_best = float(gain.flatten()[best])
        if gain_of_best <= SMALLEST * max(float(load.sum()), 1.0):
            break
        a, b = divmod(best, len(load))
        owner[[a, b]] = owner[[b, a]]
        gained += gain_of_best
    return owner, gained


@dataclass(frozen=True)
class JointSwaps:
    """Placement search: balance by `longest_first`, then swaps that lower traffic between devices.

    Where busy experts of the same tokens lie side by side, balance separates them: with "home" a
    layer with tokens that would then have more destinations than with experts in order may have a
    larger load, in steps of 15 % up to the load of experts in order, which is the result if nothing
    else is as good.

    Raises: ConfigError for another `by`, or a slack below 1; in `place`, for devices that do not
    divide the experts.
    Not for devices that hold copies: see `Eplb`.
    """

    by: str = setting(
        "stay",
        'The traffic to lower: "stay", transitions between layers that change the device; '
        '"home", pairs of experts of one token on two devices, since a token\'s row goes once to '
        "each device.",
        choices=OBJECTIVES,
    )
    slack: float = setting(1.10, "The largest load of a device over the mean load.", least=1)
    sweeps: int = setting(
        50,
        'The passes over the layers at most, with "stay"; layers of "home" are independent.',
        least=1,
    )

    def __post_init__(self) -> None:
        check(self)

    def place(self, trace: Trace, topology: Topology) -> Placement:
        """Choose a device for every expert of every layer, E / D of each layer on each device.

        trace: recorded routing, from which loads and traffic follow; topology: D devices (only
          their number is used). Raises: ConfigError if D does not divide the experts.
        """
        devices, load = topology.devices, trace.load()
        check_divides(trace.experts, devices)
        even = torch.stack(
            [
                swap_until_even(layer_load, longest_first(layer_load, devices), devices)
                for layer_load in load
            ]
        )
        if self.by == "stay":
            # "stay": a layer depends on its neighbours, so all layers are improved together
            return Placement.of(self._swap_for_stay(trace, load, even, devices), devices)
        layers = range(trace.layers)
        owner = [
            self._place_for_home(trace, layer, load[layer], even[layer], devices)
            for layer in layers
        ]
        return Placement.of(torch.stack(owner), devices)

    def _swap_for_stay(self, trace: Trace, load: Tensor, owner: Tensor, devices: int) -> Tensor:
        """Swap experts so that more tokens find their next layer's expert on the same device."""
        # load: (L, E), tokens of each expert; owner: (L, E), the device of each expert
        counts, owner = transitions(trace), owner.clone()  # (E, E) between two layers
        for _ in range(self.sweeps):
            gained = 0.0
            for layer in range(trace.layers):
                outside = affinity(counts, owner, layer, devices)
                owner[layer], improvement = swap_layer(
                    load[layer], owner[layer], outside, None, self.slack
                )
                gained += improvement
            if not gained:
                break
        return owner

    def _place_for_home(
        self, trace: Trace, layer: int, load: Tensor, even: Tensor, devices: int
    ) -> Tensor:
        """Place the experts of one layer so that a token's experts are on few devices."""
        # load: (E,), tokens of each expert; even: (E,), a placement with even loads to start from;
        # pairs: for each two experts, the tokens that have both
        membership, pairs = trace.membership(layer), trace.coactivation(layer)
        # "home": layers are independent, so nothing outside the layer pulls its experts
        none = torch.zeros(len(load), devices, dtype=torch.float64)
        in_order = Placement.contiguous(1, len(load), devices).owner[0]
        limit = mean_destinations(membership, in_order, devices)
        total = torch.zeros(devices, dtype=torch.float64).index_add(0, in_order, load.double())
        # widen the slack step by step, up to the imbalance that experts in order have
        slack, highest = self.slack, float(total.max() / total.mean().clamp_min(1e-300))
        while True:
            owner, _ = swap_layer(load, even, none, pairs, slack)
            if mean_destinations(membership, owner, devices) <= limit:
                return owner
            if slack >= highest:
                break
            slack = min(WIDER * slack, highest)
        # no slack was enough: try swaps that start from experts in order, else keep these
        owner, _ = swap_layer(load, in_order, none, pairs, self.slack)
        return owner if mean_destinations(membership, owner, devices) <= limit else in_order


CARDS = (
    Card(
        "joint_swaps",
        kind="placement",
        config=JointSwaps,
        paper=Paper(
            "2502.06643",
            2025,
            "MoETuner: Optimized Mixture of Expert Serving with Balanced Expert Placement and "
            "Token Routing",
        ),
        summary="Balance and traffic between devices lowered together, by exchanging experts.",
        family="placement of experts",
    ),
)
