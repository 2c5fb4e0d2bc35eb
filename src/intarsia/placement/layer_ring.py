"""SE-MoE's ring (arXiv:2205.10034): layers of one model pass through a few places in memory.

Layer i is computed while layers behind it are read; its place is then layer i + K's.
"""

from __future__ import annotations

import torch

from ..core.checks import at_least
from .plan import DevicePlan, PlanStep


def ring(layers: int, slots: int, *, flops: float, bytes: int, rounds: int = 1) -> DevicePlan:
    """The plan of a forward whose layers lie outside, K = slots of them in memory at once.

    flops and bytes: of a layer; rounds: forwards in a row, so that the first layers of the next one
    are read while the last ones are computed. Layer i + K is read after layer i was computed.
    slots = layers: each is read once, and never again; 1: read and computed by turns. In between, a
    layer takes max(c, l, (c + l) / K) once it is under way: two places hide the shorter one.

    Raises: ConfigError for fewer than one layer, slot or round.
    Source: arXiv:2205.10034, section 4.2 (ring memory offloading).
    """
    for name, value in (("layers", layers), ("slots", slots), ("rounds", rounds)):
        at_least(name, value, 1)
    size = torch.tensor([[bytes]])
    work = torch.tensor([flops], dtype=torch.float64)
    steps: list[PlanStep] = []
    for turn in range(layers * rounds):
        layer = turn % layers
        needs: tuple[str, ...] = ()
        if slots < layers or turn < layers:
            freed = turn - min(slots, layers)
            after = (f"compute {freed}",) if freed >= 0 and slots < layers else ()
            steps.append(PlanStep(f"load {turn}", layer, "load", "load", after, size))
            needs = (f"load {turn}",)
        steps.append(PlanStep(f"compute {turn}", layer, "expert", "compute", needs, flops=work))
    return DevicePlan(tuple(steps), 1)


def ring_seconds(turns: int, slots: int, compute: float, load: float) -> float:
    """The closed form of a ring's time, K < layers: start-up, and the period of each turn after it.

    turns: layers times rounds.  compute, load: c and l, seconds of a layer.
    """
    at_least("slots", slots, 1)
    # load i ends after load i - 1 and after compute i - K; compute i after load i and compute i - 1
    loads, computes = [0.0] * turns, [0.0] * turns
    for i in range(turns):
        free = computes[i - slots] if i >= slots else 0.0
        loads[i] = max(loads[i - 1] if i else 0.0, free) + load
        computes[i] = max(computes[i - 1] if i else 0.0, loads[i]) + compute
    return computes[-1] if turns else 0.0


def period(slots: int, compute: float, load: float) -> float:
    """Seconds of a layer once the ring is under way: max(c, l, (c + l) / K)."""
    return max(compute, load, (compute + load) / slots)
