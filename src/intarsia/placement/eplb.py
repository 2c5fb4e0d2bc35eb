"""EPLB, the load balancer of DeepSeek-V3 (arXiv:2412.19437): copies of the busiest experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Card, Paper
from ..core.checks import at_least
from ..core.errors import ConfigError
from .placement import Placement, check_divides
from .topology import Topology
from .trace import Trace


@dataclass(frozen=True)
class Eplb:
    """Groups of experts to nodes, copies where load / copies is largest, copies to devices.

    redundant: places beside the experts' own, for copies, in all; groups: of consecutive experts
    that a router limits a token to, kept on one node where nodes divide them. Each device has
    (E + redundant) / D places. The first copy is the owner's.

    Raises: ConfigError in `place` unless devices divide the places, and groups the experts.
    Not where memory is scarce: each copy costs an expert. Traffic is not looked at.
    Source: arXiv:2412.19437, section 3.4, and the released balancer.
    """

    redundant: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        at_least("redundant", self.redundant, 0)
        at_least("groups", self.groups, 1)

    def place(self, trace: Trace, topology: Topology) -> Placement:
        """Equal numbers of places."""
        experts, devices = trace.experts, topology.devices
        check_divides(experts + self.redundant, devices)
        if experts % self.groups:
            got, want = f"{self.groups} for {experts} experts", "a number that divides them"
            raise ConfigError("groups", got=got, want=want, fix="Try 1.")
        nodes, node = int(topology.nodes().max()) + 1, topology.nodes()
        whole = bool((node.bincount() == devices // nodes).all()) and devices % nodes == 0
        if self.groups % nodes or not whole or (experts + self.redundant) % nodes:
            nodes, node = 1, torch.zeros(devices, dtype=torch.int64)  # globally
        owner = torch.empty(trace.layers, experts, dtype=torch.int64)
        holds = torch.zeros(trace.layers, devices, experts, dtype=torch.bool)
        for layer, load in enumerate(trace.load().double()):
            for expert, device, first in self._layer(load, node, nodes):
                holds[layer, device, expert] = True
                if first:
                    owner[layer, expert] = device
        return Placement(owner, holds)

    def _layer(self, load: Tensor, node: Tensor, nodes: int) -> list[tuple[int, int, bool]]:
        """(expert, device, is it the first copy) of each place."""
        size = len(load) // self.groups
        of_group = load.view(self.groups, size).sum(1)
        packed = pack(of_group.tolist(), [0] * self.groups, nodes, self.groups // nodes)
        if nodes == 1:
            packed = [0] * self.groups
        found: list[tuple[int, int, bool]] = []
        for at in range(nodes):
            own = [g * size + i for g in range(self.groups) if packed[g] == at for i in range(size)]
            on = (node == at).nonzero().flatten().tolist()
            copies = copied([float(load[e]) for e in own], self.redundant // nodes, len(on))
            loads = [float(load[own[i]]) / copies.count(i) for i in copies]
            places = pack(loads, copies, len(on), len(copies) // len(on))
            seen: set[int] = set()
            for i, place in zip(copies, places, strict=True):
                found.append((own[i], on[place], i not in seen))
                seen.add(i)
        return found


def copied(load: list[float], redundant: int, most: int) -> list[int]:
    """Each expert once, and more copies of the one with the largest load / copies, at most `most`.

    Returns the experts' numbers.
    """
    count = [1] * len(load)
    for _ in range(redundant):
        free = [e for e in range(len(load)) if count[e] < most]
        if not free:
            got, want = f"{redundant} places for copies", f"at most {most} copies of an expert"
            raise ConfigError("redundant", got=got, want=want, fix="Fewer: each device has all.")
        count[max(free, key=lambda e: (load[e] / count[e], -e))] += 1
    return [e for e in range(len(load)) for _ in range(count[e])]


def pack(load: list[float], kind: list[int], packs: int, room: int) -> list[int]:
    """The pack of each item: the largest first, to the lightest with room that has none of its
    kind, so many in each.  kind: all 0 if any two may be together; else experts' numbers.
    """
    plain = not any(kind)
    total, inside = [0.0] * packs, [list[int]() for _ in range(packs)]
    found = [0] * len(load)
    # those with many copies first where loads are equal: they need different packs
    for item in sorted(range(len(load)), key=lambda i: (-load[i], i)):
        free = [p for p in range(packs) if len(inside[p]) < room]
        apart = free if plain else [p for p in free if kind[item] not in inside[p]]
        chosen = min(apart or free, key=lambda p: (total[p], p))
        found[item] = chosen
        inside[chosen].append(kind[item])
        total[chosen] += load[item]
    return found


CARD = Card(
    "eplb",
    kind="placement",
    config=Eplb,
    paper=Paper("2412.19437", 2024, "DeepSeek-V3 Technical Report"),
    summary="Even loads by copies of the busiest experts and greedy packing.",
    family="placement of experts",
    names=("EPLB",),
)
