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
from ..core.schema import check, setting
from .balance import longest_first, swap_until_even
from .ilp import LinearRule, OneHot
from .placement import Placement, check_divides
from .topology import Topology
from .trace import Trace

EXACT = 500  # binary variables E D up to which HiGHS is no worse than swaps
EVEN = 5e-3  # share of the load: if swaps leave less uneven, the programme is not solved
ALL_ORDERS = 5  # devices up to which every order of the clusters is tried


@dataclass(frozen=True)
class MoeTuner:
    """Placement search: clusters of equal counts and even loads, then a device for each cluster.

    Programme 1, of a layer: min sum_c |T_c - mean|, T_c the load of cluster c, E / D experts each.
    Programme 2: min sum_l max_{i != j} C_ij / B_ij, C_ij what goes from device i to j between two
    layers, B_ij their bandwidth; the sum decides between equal maxima. Where swaps alone are no
    worse, they are used.

    Raises: ConfigError for settings out of range; in `place`, for devices that do not divide the
    experts.
    Not where copies are wanted: see `Eplb`. `JointSwaps` has less traffic on the same load.
    Source: arXiv:2502.06643.
    """

    gap: float = setting(0.025, "The relative gap at which HiGHS stops.", least=0, most=1)
    nodes: int = setting(
        50,
        "The nodes of its search for one layer at most, so that the result does not depend on "
        "the machine's speed.",
        least=1,
    )
    sweeps: int = setting(
        20,
        "The passes over the layers, where there are more than five devices and programme 2 is "
        "solved for one layer after the other, by the sum over i and j.",
        least=1,
    )

    def __post_init__(self) -> None:
        check(self)

    def place(self, trace: Trace, topology: Topology) -> Placement:
        """Choose a device for every expert of every layer, E / D on each device.

        First each layer's experts are divided into D clusters of even load (the paper's programme
        1); then a device is chosen for each cluster, so that few tokens cross slow links from layer
        to layer (programme 2). A load is the number of an expert's tokens.
        trace: recorded routing, which gives loads and traffic; topology: D devices, their links.
        Raises: ConfigError if D does not divide the experts.
        """
        devices = topology.devices
        check_divides(trace.experts, devices)
        # programme 1 for each layer, then programme 2 for all
        clusters = torch.stack([self.clusters(load, devices) for load in trace.load()])
        traffic = [
            cluster_traffic(trace.transitions(layer), clusters[layer], clusters[layer + 1], devices)
            for layer in range(trace.layers - 1)
        ]
        order = cluster_devices(traffic, topology.bandwidth, trace.layers, self.sweeps)
        return Placement.of(order.gather(1, clusters), devices)

    def clusters(self, load: Tensor, devices: int) -> Tensor:
        """Group a layer's experts into D clusters of equal counts and even loads.

        The paper's programme 1: min sum_c |T_c - mean|, with T_c the load of cluster c; swaps are
        tried first. load: (E,), tokens of each expert; devices: D. Returns the cluster of each
        expert, (E,) int64.
        """
        near = swap_until_even(load, longest_first(load, devices), devices)
        # swaps first; the programme only where they leave something to gain and it is small enough
        even = uneven(load, near, devices) <= EVEN * float(load.sum())
        if even or len(load) * devices > EXACT:
            return near
        solved = even_clusters(load, devices, gap=self.gap, nodes=self.nodes)
        if solved is None or uneven(load, solved, devices) >= uneven(load, near, devices):
            return near
        return solved


def uneven(load: Tensor, cluster: Tensor, devices: int) -> float:
    """Return how uneven the loads of clusters are: sum_c |T_c - mean|, T_c the load of cluster c.

    load: (E,), tokens of each expert; cluster: (E,), its cluster; devices: D, number of clusters.
    """
    total = torch.zeros(devices, dtype=torch.float64).index_add(0, cluster, load.double())
    return float((total - total.mean()).abs().sum())


def even_clusters(load: Tensor, devices: int, *, gap: float, nodes: int) -> Tensor | None:
    """Divide experts into clusters of equal counts and even loads, by integer programming (HiGHS).

    load: (E,), tokens of each expert; devices: D, number of clusters; gap, nodes: limits of the
      search, see `MoeTuner`. Variables: x (E, D) one-hot, and u_c >= |T_c - mean|, T_c the load of
      cluster c; the sum of u_c is minimised. The expert of largest load is fixed in cluster 0,
      since clusters are interchangeable. Returns the cluster of each expert, (E,); None where the
      search ends without a solution.
    """
    from scipy import sparse  # here, as it takes a third of a second

    experts = len(load)
    t, ones, eye = load.double().numpy(), np.ones((1, experts)), sparse.identity(devices)
    mean, even = t.sum() / devices, experts // devices
    # x is laid out expert by expert: row c of counts and loads sums over the experts of cluster c
    counts, loads = sparse.kron(ones, eye), sparse.kron(t[None], eye)
    rules = (
        LinearRule(counts, even, even),
        LinearRule(loads, high=mean, extra=-eye),  # T_c - u_c <= mean
        LinearRule(loads, low=mean, extra=eye),
    )
    programme = OneHot(
        cost=torch.zeros(experts, devices),
        extra_cost=torch.ones(devices),  # the u_c
        rules=rules,
        fixed=((int(t.argmax()), 0),),
    )
    return programme.solve(gap=gap, nodes=nodes)


def cluster_traffic(transitions: Tensor, source: Tensor, target: Tensor, devices: int) -> Tensor:
    """Sum the transitions between experts to the traffic between clusters, (D, D).

    transitions: (E, E), tokens from each expert to each of the next layer; source, target: (E,),
      the clusters of the experts of the two layers; devices: D, number of clusters.
    """
    # sum the experts of each cluster over rows, then over columns
    rows = torch.zeros(devices, transitions.shape[1], dtype=transitions.dtype).index_add(
        0, source, transitions
    )
    return torch.zeros(devices, devices, dtype=transitions.dtype).index_add(1, target, rows)


def slowest(traffic: Tensor, bandwidth: Tensor) -> Tensor:
    """Return the time of the traffic between two layers, which its slowest link decides.

    max_{i != j} C_ij / B_ij + 1e-4 sum C_ij / B_ij; the sum decides between equal maxima. traffic:
    C (..., D, D), from each device to each; bandwidth: B (D, D). Returns (...).
    """
    diagonal = torch.eye(len(bandwidth), dtype=torch.bool)
    takes = traffic / bandwidth.masked_fill(diagonal, torch.inf)
    return takes.amax((-2, -1)) + 1e-4 * takes.sum((-2, -1))


def cluster_devices(traffic: list[Tensor], bandwidth: Tensor, layers: int, sweeps: int) -> Tensor:
    """Choose a device for each cluster of each layer, so that traffic is fast.  (L, D) int64.

    The paper's programme 2. traffic: C (D, D), from cluster to cluster, between each two layers;
    bandwidth: B (D, D); layers: L; sweeps: passes over the layers, where there are too many devices
    for an exact search. The first layer's clusters keep their numbers where all links are alike.
    """
    devices = len(bandwidth)
    if devices <= ALL_ORDERS:
        return _by_viterbi(traffic, bandwidth, layers)
    return _by_assignment(traffic, bandwidth, layers, sweeps)


def _by_viterbi(traffic: list[Tensor], bandwidth: Tensor, layers: int) -> Tensor:
    """Choose the devices of all clusters exactly, by dynamic programming.  (L, D) int64."""
    # traffic: C (D, D), from cluster to cluster, between each two layers
    devices = len(bandwidth)
    permutations = torch.tensor(list(itertools.permutations(range(devices))))  # cluster -> device
    inverse = permutations.argsort(1)  # device -> cluster
    # costs: of the best way to each permutation of the present layer
    costs = torch.zeros(len(permutations), dtype=torch.float64)
    predecessors: list[Tensor] = []
    for c in traffic:
        # traffic between devices for each permutation of this layer and each of the next
        moved = c[inverse[:, None, :, None], inverse[None, :, None, :]]  # (P, P, D, D), P = D!
        total = costs[:, None] + slowest(moved, bandwidth)
        costs, best = total.min(0)
        predecessors.append(best)
    # follow the best predecessors back from the last layer
    path = [int(costs.argmin())]
    for best in reversed(predecessors):
        path.append(int(best[path[-1]]))
    return permutations[torch.tensor(path[::-1])]


def _by_assignment(traffic: list[Tensor], bandwidth: Tensor, layers: int, sweeps: int) -> Tensor:
    """Choose the devices of one layer's clusters after another, given its neighbours.  (L, D)."""
    from scipy.optimize import linear_sum_assignment  # here, as it takes a third of a second

    # traffic: C (D, D), from cluster to cluster, between each two layers
    devices = len(bandwidth)
    diagonal = torch.eye(devices, dtype=torch.bool)
    slow = (1 / bandwidth).masked_fill(diagonal, 0.0)  # seconds for a byte
    device_of = torch.arange(devices).repeat(layers, 1)
    # passes are repeated until nothing changes
    for _ in range(sweeps):
        before = device_of.clone()
        for layer in range(layers):
            cost = torch.zeros(devices, devices, dtype=torch.float64)  # cluster, device
            if layer:
                cost += traffic[layer - 1].T @ slow[device_of[layer - 1]]
            if layer + 1 < layers:
                cost += traffic[layer] @ slow[:, device_of[layer + 1]].T
            # cost[c, d]: seconds of all traffic of cluster c if it lies on device d
            now = cost[torch.arange(devices), device_of[layer]].sum()
            cluster, device = (torch.from_numpy(a) for a in linear_sum_assignment(cost.numpy()))
            if float(cost[cluster, device].sum()) < float(now) * (1 - 1e-12):
                device_of[layer][cluster] = device
        if torch.equal(before, device_of):
            break
    return device_of


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
