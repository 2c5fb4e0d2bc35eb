"""Experts dealt out to devices: the longest first, then swaps; and joint swaps as a search.

Loads alone are balanced by `longest_first` and `swapped`. `JointSwaps` lowers what goes between
devices under that balance; it is not of a paper, and stands beside MoETuner's programmes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Card, Paper
from ..core.checks import at_least, one_of
from .cost import mean_destinations
from .placement import Placement, check_divides
from .topology import Topology
from .trace import Trace

OBJECTIVES = ("home", "stay")
SMALLEST = 1e-9  # a swap that gains less than this share is none
WIDER = 1.15  # from one load that a device may have to the next one that is tried


def longest_first(load: Tensor, devices: int) -> Tensor:
    """Each expert, the largest load first, to the device with the least, E / D on each.

    load: (E,) -> owner (E,) int64.  Source: Graham 1969 (LPT), with equal counts.
    """
    room = [len(load) // devices] * devices
    total = [0.0] * devices
    owner = torch.empty(len(load), dtype=torch.int64)
    values = load.tolist()
    for expert in sorted(range(len(values)), key=lambda e: (-values[e], e)):
        device = min((d for d in range(devices) if room[d]), key=lambda d: (total[d], d))
        owner[expert] = device
        room[device] -= 1
        total[device] += values[expert]
    return owner


def swapped(load: Tensor, owner: Tensor, devices: int) -> Tensor:
    """Pairs of experts exchanged while sum_d |T_d - mean| falls, the best exchange first.

    load: (E,), owner: (E,) -> owner (E,).
    """
    load, owner = load.double(), owner.clone()
    mean = float(load.sum()) / devices
    for _ in range(len(load) ** 2):
        total = torch.zeros(devices, dtype=torch.float64).index_add(0, owner, load)
        off = total - mean
        more = load[None, :] - load[:, None]  # what a's device gains if a and b change places
        new = (off[owner][:, None] + more).abs() + (off[owner][None, :] - more).abs()
        old = off[owner].abs()[:, None] + off[owner].abs()[None, :]
        gain = torch.where(owner[:, None] != owner[None, :], old - new, 0.0)
        best = int(gain.argmax())
        if float(gain.flatten()[best]) <= SMALLEST * max(mean, 1.0):
            break
        a, b = divmod(best, len(load))
        owner[[a, b]] = owner[[b, a]]
    return owner


def affinity(ways: Sequence[Tensor], owner: Tensor, layer: int, devices: int) -> Tensor:
    """The weight of transitions of each expert to and from each device, by the layers beside it.

    ways: (E, E) after each layer but the last.  Returns (E, D) float64.
    """
    found = torch.zeros(owner.shape[1], devices, dtype=torch.float64)
    if layer:
        found.index_add_(1, owner[layer - 1], ways[layer - 1].T)
    if layer < len(ways):
        found.index_add_(1, owner[layer + 1], ways[layer])
    return found


def transitions(trace: Trace) -> list[Tensor]:
    """(E, E) after each layer but the last."""
    return [trace.transitions(layer) for layer in range(trace.layers - 1)]


def swap_layer(
    load: Tensor, owner: Tensor, drawn: Tensor, within: Tensor | None, slack: float
) -> tuple[Tensor, float]:
    """Exchange pairs of experts of a layer while more of their affinity stays on one device.

    load: (E,); owner: (E,); drawn: (E, D), of each expert to a device because of other layers;
    within: (E, E), of two experts of this layer, symmetric, or None; slack: no device's load may
    rise above so many times the mean, or the largest there is.
    Returns the owners, and what was gained.
    """
    load, owner, devices = load.double(), owner.clone(), drawn.shape[1]
    cap = slack * float(load.sum()) / devices
    inside = None if within is None else within.double().clone().fill_diagonal_(0)
    gained = 0.0
    for _ in range(len(load) ** 2):
        pull = drawn
        if inside is not None:
            pull = drawn.index_add(1, owner, inside)
        own = pull.gather(1, owner[:, None])  # (E, 1)
        across = pull[:, owner]  # of a, to the device of b
        gain = across - own + (across - own).T
        if inside is not None:  # the two do not come together by changing places
            gain = gain - 2 * inside
        total = torch.zeros(devices, dtype=torch.float64).index_add(0, owner, load)
        most = max(cap, float(total.max())) * (1 + 1e-12)
        new = total[owner][:, None] - load[:, None] + load[None, :]
        fits = (new <= most) & (most >= new.T) & (owner[:, None] != owner[None, :])
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
    """Balance by `longest_first`, then exchanges of two experts that lower what goes between
    devices.

    by: "stay", transitions between layers that change the device; "home", pairs of experts of one
    token that are apart, since a token's row goes once to each device;
    slack: a device's load may be so many times the mean. Where busy experts of the same tokens lie
      side by side, balance takes them apart: with "home" a layer whose tokens would then have more
      destinations than with experts in order may have a larger load, in steps of 15 % up to that
      of experts in order, which is what it has if nothing else is as good;
    sweeps: over the layers at most, with "stay"; the layers of "home" do not depend on each other.

    Raises: ConfigError for another `by`, or a slack below 1; in `place`, for devices that do not
    divide the experts.
    Not for devices that hold copies: see `Eplb`.
    """

    by: str = "stay"
    slack: float = 1.10
    sweeps: int = 50

    def __post_init__(self) -> None:
        one_of("by", self.by, OBJECTIVES)
        at_least("slack", self.slack, 1)
        at_least("sweeps", self.sweeps, 1)

    def place(self, trace: Trace, topology: Topology) -> Placement:
        """Equal counts, no copies."""
        devices, load = topology.devices, trace.load()
        check_divides(trace.experts, devices)
        even = torch.stack([swapped(of, longest_first(of, devices), devices) for of in load])
        if self.by == "stay":
            return Placement.of(self._stay(trace, load, even, devices), devices)
        layers = range(trace.layers)
        owner = [self._home(trace, at, load[at], even[at], devices) for at in layers]
        return Placement.of(torch.stack(owner), devices)

    def _stay(self, trace: Trace, load: Tensor, owner: Tensor, devices: int) -> Tensor:
        """Exchange experts in sweeps over the layers, from these owners.  (L, E) -> (L, E)."""
        ways, owner = transitions(trace), owner.clone()
        for _ in range(self.sweeps):
            gained = 0.0
            for layer in range(trace.layers):
                drawn = affinity(ways, owner, layer, devices)
                owner[layer], more = swap_layer(load[layer], owner[layer], drawn, None, self.slack)
                gained += more
            if not gained:
                break
        return owner

    def _home(self, trace: Trace, layer: int, load: Tensor, even: Tensor, devices: int) -> Tensor:
        """Return the owners of the smallest slack with no more destinations than in order.  (E,)"""
        chosen, pairs = trace.chosen(layer), trace.coactivation(layer)
        none = torch.zeros(len(load), devices, dtype=torch.float64)
        in_order = Placement.contiguous(1, len(load), devices).owner[0]
        most = mean_destinations(chosen, in_order, devices)
        total = torch.zeros(devices, dtype=torch.float64).index_add(0, in_order, load.double())
        slack, highest = self.slack, float(total.max() / total.mean().clamp_min(1e-300))
        while True:
            owner, _ = swap_layer(load, even, none, pairs, slack)
            if mean_destinations(chosen, owner, devices) <= most:
                return owner
            if slack >= highest:
                break
            slack = min(WIDER * slack, highest)
        owner, _ = swap_layer(load, in_order, none, pairs, self.slack)
        return owner if mean_destinations(chosen, owner, devices) <= most else in_order


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
