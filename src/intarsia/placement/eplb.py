"""EPLB, the load balancer of DeepSeek-V3 (arXiv:2412.19437): copies of the busiest experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Card, Paper
from ..core.errors import ConfigError
from ..core.schema import check, setting
from .placement import Placement, check_divides
from .topology import Topology
from .trace import Trace


@dataclass(frozen=True)
class Eplb:
    """Placement search: groups of experts to nodes, copies of the busiest, copies to devices.

    Each device has (E + redundant) / D places. The first copy is the owner's.

    Raises: ConfigError in `place` unless devices divide the places, and groups the experts.
    Not where memory is scarce: each copy costs an expert. Traffic is not looked at.
    Source: arXiv:2412.19437, section 3.4, and the released balancer.
    """

    redundant: int = setting(
        0,
        "The places for copies in all devices together, beyond one place for each expert.",
        least=0,
    )
    groups: int = setting(
        1,
        "The groups of consecutive experts that a router limits a token to, each placed on one "
        "node where nodes divide them.",
        least=1,
    )

    def __post_init__(self) -> None:
        check(self)

    def place(self, trace: Trace, topology: Topology) -> Placement:
        """Choose devices for experts and their copies, equally many places on each device.

        The busiest experts get copies. trace: recorded routing, with the loads that decide;
        topology: the devices and their nodes.
        Raises: ConfigError for numbers that do not divide each other.
        """
        return self.place_loads(trace.load(), topology)

    def place_loads(self, load: Tensor, topology: Topology) -> Placement:
        """Copy and place experts by their loads alone.  load: (L, E), the tokens of each."""
        layers, experts = load.shape
        devices = topology.devices
        check_divides(experts + self.redundant, devices)
        if experts % self.groups:
            got, want = f"{self.groups} for {experts} experts", "a number that divides them"
            raise ConfigError("groups", got=got, want=want, fix="Try 1.")
        nodes, node = int(topology.nodes().max()) + 1, topology.nodes()
        equal_nodes = bool((node.bincount() == devices // nodes).all()) and devices % nodes == 0
        if self.groups % nodes or not equal_nodes or (experts + self.redundant) % nodes:
            # groups and nodes do not match: balance globally, as if there were one node
            nodes, node = 1, torch.zeros(devices, dtype=torch.int64)
        owner = torch.empty(layers, experts, dtype=torch.int64)
        holds = torch.zeros(layers, devices, experts, dtype=torch.bool)
        for layer, counts in enumerate(load.double()):
            for expert, device, first in self._fill_layer(counts, node, nodes):
                holds[layer, device, expert] = True
                if first:
                    owner[layer, expert] = device
        return Placement(owner, holds)

    def _fill_layer(self, load: Tensor, node: Tensor, nodes: int) -> list[tuple[int, int, bool]]:
        """Fill the places of one layer: (expert, device, True for its first copy) for each."""
        # load: (E,), tokens of each expert; node: (D,), the node of each device
        size = len(load) // self.groups
        of_group = load.view(self.groups, size).sum(1)
        # step 1: groups of experts to nodes, by load
        packed = pack(of_group.tolist(), [0] * self.groups, nodes, self.groups // nodes)
        if nodes == 1:
            packed = [0] * self.groups
        places_of: list[tuple[int, int, bool]] = []
        for node_index in range(nodes):
            experts = [
                g * size + i
                for g in range(self.groups)
                if packed[g] == node_index
                for i in range(size)
            ]
            devices = (node == node_index).nonzero().flatten().tolist()
            # step 2: copies of the busiest experts of the node; step 3: copies to its devices
            copies = replicate(
                [float(load[e]) for e in experts], self.redundant // nodes, len(devices)
            )
            loads = [float(load[experts[i]]) / copies.count(i) for i in copies]
            # a copy carries its share of the expert's load
            places = pack(loads, copies, len(devices), len(copies) // len(devices))
            placed: set[int] = set()
            for i, place in zip(copies, places, strict=True):
                places_of.append((experts[i], devices[place], i not in placed))
                placed.add(i)
        return places_of


def replicate(load: list[float], redundant: int, limit: int) -> list[int]:
    """Choose which experts get copies: each further copy goes to the largest load per copy.

    load: (E,), tokens of each expert. Returns the expert of each copy, in ascending order.
    Raises: ConfigError for more copies than the limit allows.
    """
    count = [1] * len(load)
    for _ in range(redundant):
        free = [e for e in range(len(load)) if count[e] < limit]
        if not free:
            got, want = f"{redundant} places for copies", f"at most {limit} copies of an expert"
            raise ConfigError("redundant", got=got, want=want, fix="Fewer: each device has all.")
        count[max(free, key=lambda e: (load[e] / count[e], -e))] += 1
    return [e for e in range(len(load)) for _ in range(count[e])]


def pack(load: list[float], kind: list[int], packs: int, room: int) -> list[int]:
    """Distribute items over packs of equal counts, largest load first, always to the lightest pack.

    Items are copies of experts and packs are devices, or groups of experts and nodes. load: of each
    item; kind: the expert of each item, so that two copies of one expert are kept apart where
    possible, or all 0 if any two may be together; packs: their number; room: items that each takes.
    Returns the pack of each item.
    """
    plain = not any(kind)
    total, inside = [0.0] * packs, [list[int]() for _ in range(packs)]
    pack_of = [0] * len(load)
    # equal loads: the item that is listed first
    for item in sorted(range(len(load)), key=lambda i: (-load[i], i)):
        # prefer packs without a copy of the same expert, then the lightest
        free = [p for p in range(packs) if len(inside[p]) < room]
        apart = free if plain else [p for p in free if kind[item] not in inside[p]]
        lightest = min(apart or free, key=lambda p: (total[p], p))
        pack_of[item] = lightest
        inside[lightest].append(kind[item])
        total[lightest] += load[item]
    return pack_of


CARD = Card(
    "eplb",
    kind="placement",
    config=Eplb,
    paper=Paper("2412.19437", 2024, "DeepSeek-V3 Technical Report"),
    summary="Even loads by copies of the busiest experts and greedy packing.",
    family="placement of experts",
    names=("EPLB",),
)
