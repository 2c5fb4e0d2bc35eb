"""Which experts are copied where for one batch, and who owns them: Hecate's decisions.

arXiv:2502.02581. All of it is arithmetic on loads that every process knows, so that all decide the
same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .placement import Placement


def deal(load: Sequence[float], slots: int, most: int) -> list[int]:
    """Slots in proportion to the loads, largest remainders first; each at least 1, at most `most`.

    There are at least as many slots as loads.  Returns their numbers, which add up to `slots` or to
    what `most` allows.
    """
    total = sum(load)
    share = [slots * (one / total if total else 1 / len(load)) for one in load]
    found = [min(most, max(1, int(s))) for s in share]
    while sum(found) > slots:  # those below 1 were lifted: the most generous gives
        given = [i for i, count in enumerate(found) if count > 1]
        found[max(given, key=lambda i: (found[i] - share[i], i))] -= 1
    while sum(found) < slots and min(found) < most:
        free = [i for i, count in enumerate(found) if count < most]
        found[max(free, key=lambda i: (share[i] - found[i], -i))] += 1
    return found


def materialised(load: Tensor, owner: Tensor, nodes: Tensor, slots: int, hottest: int) -> Tensor:
    """Who holds which expert for a batch: owners, and copies of the hottest.

    load: (E,), expected;  owner: (E,);  nodes: (D,);  slots: m, copies that a device has room for;
    hottest: t, experts that are copied at all.  Returns holds (D, E) bool.
    t <= m: all devices have the t hottest. Else D m slots are dealt to them by load, the hottest
    first to free devices, on nodes without a copy before others, the least loaded first.
    """
    devices, experts = len(nodes), len(load)
    holds = owner[None] == torch.arange(devices)[:, None]
    hottest = min(hottest, experts, devices * slots)  # each of them gets one at least
    slots = min(slots, hottest)
    values = load.double().tolist()
    hot = sorted(range(experts), key=lambda e: (-values[e], e))[:hottest]
    if not slots or devices == 1:
        return holds
    if hottest <= slots:
        holds[:, hot] = True
        return holds
    copies = dict(
        zip(hot, deal([values[e] for e in hot], devices * slots, devices - 1), strict=True)
    )
    part = [values[e] / (1 + copies.get(e, 0)) for e in range(experts)]
    total = [0.0] * devices
    for expert, device in enumerate(owner.tolist()):
        total[device] += part[expert]
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
    """Pairs that each device computes: its own where it holds the expert, else those of its node
    share, else all that hold it.

    load: (D, E), of each device's tokens;  holds: (D, E) bool.  Returns (D,) float64.
    """
    devices = len(nodes)
    there = holds[None].expand(devices, -1, -1)  # (from, to, E)
    near = (nodes[:, None] == nodes[None])[:, :, None]
    own = torch.eye(devices, dtype=torch.bool)[:, :, None]
    for wanted in (there & near, there & own):
        there = torch.where(wanted.any(1, keepdim=True), wanted, there)
    share = there.double() / there.sum(1, keepdim=True).clamp(min=1)
    return (load.double()[:, None] * share).sum((0, 2))


def by_load(load: Tensor, nodes: Tensor, hottest: int) -> Placement:
    """Owners so that what is not copied is even: heterogeneous sharding.

    load: (L, E);  hottest: t. In each layer the t most loaded are set aside; the others go to the
    node, then the device, with the least load of this layer, fewer owned first among equals; those
    set aside then go wherever there is room, since they are copied anyhow. A device owns E L / D
    experts, rounded up, over all layers, however many of one layer.
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
