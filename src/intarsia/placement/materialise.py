"""Hecate (arXiv:2502.02581): which devices own each expert, and which hold copies for one batch.

All of it is arithmetic on loads that every process knows, so that all processes decide the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .placement import Placement


def apportion(load: Sequence[float], slots: int, limit: int) -> list[int]:
    """Divide slots in proportion to loads, largest remainders first; each gets 1 to `limit`.

    slots: their number, at least as many as loads; limit: slots of one at most. Returns the slots
      of each load; their sum is `slots`, or len(load) * limit if that is smaller.
    """
    total = sum(load)
    share = [slots * (value / total if total else 1 / len(load)) for value in load]
    counts = [min(limit, max(1, int(s))) for s in share]
    # shares below 1 were raised to 1: take slots back where rounding gained most
    while sum(counts) > slots:
        above_one = [i for i, count in enumerate(counts) if count > 1]
        counts[max(above_one, key=lambda i: (counts[i] - share[i], i))] -= 1
    # hand out what rounding down left, largest remainder first
    while sum(counts) < slots and min(counts) < limit:
        free = [i for i, count in enumerate(counts) if count < limit]
        counts[max(free, key=lambda i: (share[i] - counts[i], -i))] += 1
    return counts


def materialise(load: Tensor, owner: Tensor, nodes: Tensor, slots: int, hottest: int) -> Tensor:
    """Choose which devices hold which experts for a batch: their owners, and copies of the busiest.

    load: (E,), expected tokens of each expert; owner: (E,), its device; nodes: (D,), the node of
      each device; slots: m, copies that a device has room for; hottest: t, number of busiest
      experts that are copied. Returns holds (D, E) bool.
    t <= m: all devices have the t busiest. Else the D m slots are divided among them by load; their
    copies go, busiest first, to devices with a free slot: nodes without a copy before others, then
    the least loaded device.
    """
    devices, experts = len(nodes), len(load)
    holds = owner[None] == torch.arange(devices)[:, None]
    hottest = min(hottest, experts, devices * slots)  # each of them gets one at least
    slots = min(slots, hottest)
    values = load.double().tolist()
    hot = sorted(range(experts), key=lambda e: (-values[e], e))[:hottest]
    if not slots or devices == 1:
        return holds
    # every device has room for all of them: copy them everywhere
    if hottest <= slots:
        holds[:, hot] = True
        return holds
    copies = dict(
        zip(hot, apportion([values[e] for e in hot], devices * slots, devices - 1), strict=True)
    )
    # the load of one copy, if owner and copies share it equally
    part = [values[e] / (1 + copies.get(e, 0)) for e in range(experts)]
    total = [0.0] * devices
    for expert, device in enumerate(owner.tolist()):
        total[device] += part[expert]
    # copies go one by one to free devices, busiest expert first
    used = [0] * devices
    for expert in hot:
        for _ in range(copies[expert]):
            free = [d for d in range(devices) if used[d] < slots and not holds[d, expert]]
            if not free:
                break
            near = set(nodes[holds[:, expert]].tolist())
            device = min(free, key=lambda d: (int(nodes[d]) in near, total[d], d))
            holds[device, expert] = True
            used[device] += 1
            total[device] += part[expert]
    return holds


def rows_computed(load: Tensor, holds: Tensor, nodes: Tensor) -> Tensor:
    """Return how many pairs of a row and an expert each device computes, (D,) float64.

    A pair is computed on its own device if that holds the expert, else it is shared by the devices
    of the node that hold it, else by all that hold it.
    load: (D, E), pairs of each device's tokens; holds: (D, E) bool, which device holds which
      expert; nodes: (D,), the node of each device.
    """
    devices = len(nodes)
    candidates = holds[None].expand(devices, -1, -1)  # (from, to, E)
    on_node = (nodes[:, None] == nodes[None])[:, :, None]
    on_source = torch.eye(devices, dtype=torch.bool)[:, :, None]
    # narrow the candidates to the node, then to the device itself, wherever one is left
    for preferred in (candidates & on_node, candidates & on_source):
        candidates = torch.where(preferred.any(1, keepdim=True), preferred, candidates)
    # several devices that hold the expert share its pairs equally
    share = candidates.double() / candidates.sum(1, keepdim=True).clamp(min=1)
    return (load.double()[:, None] * share).sum((0, 2))


def by_load(load: Tensor, nodes: Tensor, hottest: int) -> Placement:
    """Choose a device for each expert so that experts without copies have even loads.

    The paper calls this heterogeneous sharding. load: (L, E), tokens of each expert; nodes: (D,),
    the node of each device; hottest: t, the busiest experts of a layer, which are copied later. In
    each layer these are set aside; the others go to the node, then the device, with the least load
    of this layer, among equals to the one that owns fewer; those set aside then go wherever there
    is room. A device owns E L / D experts, rounded up, over all layers, however many of one layer.
    """
    layers, experts = load.shape
    devices, node = len(nodes), nodes.tolist()
    room = [-(-layers * experts // devices)] * devices
    owner = torch.empty(layers, experts, dtype=torch.int64)
    for layer, values in enumerate(load.double().tolist()):
        order = sorted(range(experts), key=lambda e: (-values[e], e))
        total = [0.0] * devices
        hot, cold = order[: min(hottest, experts)], order[min(hottest, experts) :]
        later = experts * (layers - layer - 1)  # what the layers after this one still need
        # cold experts first, so that their loads are even; hot ones fill the room that is left
        for expert in [*cold, *hot]:
            free = [d for d in range(devices) if room[d]]
            assert free and sum(room) > later
            of_node = {n: sum(total[d] for d in range(devices) if node[d] == n) for n in set(node)}
            if expert in hot:
                device = max(free, key=lambda d: (room[d], -d))
            else:
                device = min(free, key=lambda d: (of_node[node[d]], total[d], -room[d], d))
            owner[layer, expert] = device
            room[device] -= 1
            total[device] += values[expert] if expert not in hot else 0.0
    return Placement.of(owner, devices)
