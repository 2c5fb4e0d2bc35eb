"""MoETuner (arXiv:2502.06643): experts to clusters by load, clusters to devices by traffic.

Two programmes, one after the other. The first is solved by HiGHS where it can be, the second
exactly for up to five devices.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core import Card, Paper
from ..core.checks import at_least, between
from .balance import longest_first, swapped
from .ilp import OneHot, Rule
from .placement import Placement, check_divides
from .topology import Topology
from .trace import Trace

EXACT = 500  # binaries E D up to which HiGHS is no worse than exchanges
EVEN = 5e-3  # of the load: where exchanges leave less uneven, nothing can be gained
ALL_ORDERS = 5  # devices up to which every order of the clusters is looked at


@dataclass(frozen=True)
class MoeTuner:
    """Clusters of equal counts and even loads, then the clusters' devices, layer by layer.

    Programme 1, of a layer: min sum_c |T_c - mean|, T_c the load of cluster c, E / D experts each.
    Programme 2: min sum_l max_{i != j} C_ij / B_ij, C_ij what goes from device i to j between two
    layers, B_ij their bandwidth; equal maxima are told apart by the sum.
    gap: of HiGHS, at which it stops; nodes: of its search for one layer at most, so that the end
    does not depend on the machine's speed; where exchanges alone are no worse, theirs are taken.
    sweeps: over the layers, where there are more than five devices and programme 2 is solved for
    one layer after the other, by the sum over i and j.

    Raises: ConfigError for settings that cannot be; in `place`, for devices that do not divide the
    experts.
    Not where copies are wanted: see `Eplb`. `JointSwaps` has less traffic on the same load.
    Source: arXiv:2502.06643.
    """

    gap: float = 0.025
    nodes: int = 50
    sweeps: int = 20

    def __post_init__(self) -> None:
        between("gap", self.gap, 0, 1)
        at_least("nodes", self.nodes, 1)
        at_least("sweeps", self.sweeps, 1)

    def place(self, trace: Trace, topology: Topology) -> Placement:
        """Equal counts, no copies."""
        devices = topology.devices
        check_divides(trace.experts, devices)
        clusters = torch.stack([self.clusters(load, devices) for load in trace.load()])
        traffic = [
            between_clusters(trace.transitions(at), clusters[at], clusters[at + 1], devices)
            for at in range(trace.layers - 1)
        ]
        order = orders(traffic, topology.bandwidth, trace.layers, self.sweeps)
        return Placement.of(order.gather(1, clusters), devices)

    def clusters(self, load: Tensor, devices: int) -> Tensor:
        """Programme 1.  load: (E,) -> the cluster of each expert, (E,) int64."""
        near = swapped(load, longest_first(load, devices), devices)
        even = uneven(load, near, devices) <= EVEN * float(load.sum())
        if even or len(load) * devices > EXACT:
            return near
        found = even_clusters(load, devices, gap=self.gap, nodes=self.nodes)
        if found is None or uneven(load, found, devices) >= uneven(load, near, devices):
            return near
        return found


def uneven(load: Tensor, cluster: Tensor, devices: int) -> float:
    """sum_c |T_c - mean|."""
    total = torch.zeros(devices, dtype=torch.float64).index_add(0, cluster, load.double())
    return float((total - total.mean()).abs().sum())


def even_clusters(load: Tensor, devices: int, *, gap: float, nodes: int) -> Tensor | None:
    """Programme 1 by HiGHS: one-hot x (E, D), equal counts, u_c >= |T_c - mean|, min sum_c u_c.

    The largest expert is in cluster 0, since clusters have no names.  None where the search ends
    before anything is found.
    """
    from scipy import sparse  # a third of a second

    experts = len(load)
    t, ones, eye = load.double().numpy(), np.ones((1, experts)), sparse.identity(devices)
    mean, even = t.sum() / devices, experts // devices
    counts, loads = sparse.kron(ones, eye), sparse.kron(t[None], eye)
    rules = (
        Rule(counts, even, even),
        Rule(loads, high=mean, more=-eye),  # T_c - u_c <= mean
        Rule(loads, low=mean, more=eye),
    )
    programme = OneHot(
        torch.zeros(experts, devices),
        torch.ones(devices),
        rules=rules,
        fixed=((int(t.argmax()), 0),),
    )
    return programme.solve(gap=gap, nodes=nodes)


def between_clusters(ways: Tensor, here: Tensor, there: Tensor, devices: int) -> Tensor:
    """C: what goes from a cluster of a layer to one of the next.  ways: (E, E) -> (D, D)."""
    rows = torch.zeros(devices, ways.shape[1], dtype=ways.dtype).index_add(0, here, ways)
    return torch.zeros(devices, devices, dtype=ways.dtype).index_add(1, there, rows)


def slowest(traffic: Tensor, bandwidth: Tensor) -> Tensor:
    """max_{i != j} C_ij / B_ij, and a ten-thousandth of the sum.  traffic: (..., D, D) -> (...)."""
    own = torch.eye(len(bandwidth), dtype=torch.bool)
    takes = traffic / bandwidth.masked_fill(own, torch.inf)
    return takes.amax((-2, -1)) + 1e-4 * takes.sum((-2, -1))


def orders(traffic: list[Tensor], bandwidth: Tensor, layers: int, sweeps: int) -> Tensor:
    """Programme 2: the device of each cluster.  Returns (L, D) int64.

    traffic: C of each two layers. The first layer's clusters keep their numbers where all links
    are alike.
    """
    devices = len(bandwidth)
    if devices <= ALL_ORDERS:
        return _every_order(traffic, bandwidth, layers)
    return _one_at_a_time(traffic, bandwidth, layers, sweeps)


def _every_order(traffic: list[Tensor], bandwidth: Tensor, layers: int) -> Tensor:
    """The best way through all orders of all layers (Viterbi)."""
    devices = len(bandwidth)
    every = torch.tensor(list(itertools.permutations(range(devices))))  # cluster -> device
    at = every.argsort(1)  # device -> cluster
    costs = torch.zeros(len(every), dtype=torch.float64)
    came: list[Tensor] = []
    for c in traffic:
        moved = c[at[:, None, :, None], at[None, :, None, :]]  # (orders, orders, D, D)
        total = costs[:, None] + slowest(moved, bandwidth)
        costs, best = total.min(0)
        came.append(best)
    chosen = [int(costs.argmin())]
    for best in reversed(came):
        chosen.append(int(best[chosen[-1]]))
    return every[torch.tensor(chosen[::-1])]


def _one_at_a_time(traffic: list[Tensor], bandwidth: Tensor, layers: int, sweeps: int) -> Tensor:
    """Each layer's best devices given its neighbours', until nothing improves; by the sum."""
    from scipy.optimize import linear_sum_assignment  # a third of a second, needed once

    devices = len(bandwidth)
    own = torch.eye(devices, dtype=torch.bool)
    slow = (1 / bandwidth).masked_fill(own, 0.0)  # seconds for a byte
    found = torch.arange(devices).repeat(layers, 1)
    for _ in range(sweeps):
        before = found.clone()
        for layer in range(layers):
            cost = torch.zeros(devices, devices, dtype=torch.float64)  # cluster, device
            if layer:
                cost += traffic[layer - 1].T @ slow[found[layer - 1]]
            if layer + 1 < layers:
                cost += traffic[layer] @ slow[:, found[layer + 1]].T
            now = cost[torch.arange(devices), found[layer]].sum()
            cluster, device = (torch.from_numpy(a) for a in linear_sum_assignment(cost.numpy()))
            if float(cost[cluster, device].sum()) < float(now) * (1 - 1e-12):
                found[layer][cluster] = device
        if torch.equal(before, found):
            break
    return found


CARD = Card(
    "moetuner",
    kind="placement",
    config=MoeTuner,
    paper=Paper(
        "2502.06643",
        2025,
        "MoETuner: Optimized Mixture of Expert Serving with Balanced Expert Placement and Token "
        "Routing",
    ),
    summary="Even clusters of experts by one programme, their devices by a second.",
    family="placement of experts",
    names=("MoETuner",),
)
