"""SE-MoE's ring memory (arXiv:2205.10034): layers of one model share K slots of device memory.

Layer i is computed while later layers are read; its slot is then given to layer i + K.
"""

from __future__ import annotations

import torch

from ..core.checks import at_least
from .plan import DevicePlan, PlanStep


def ring(layers: int, slots: int, *, flops: float, bytes: int, rounds: int = 1) -> DevicePlan:
    """Plan a forward with layers in host memory, with room for K layers on the device.

    layers: L; slots: K; flops and bytes: of one layer; rounds: forwards in a row, so that the first
      layers of the next one are read while the last ones are computed. Layer i + K is read after
      layer i was computed. slots = layers: each is read once, and never again; 1: read and computed
      by turns. In between, a layer takes max(c, l, (c + l) / K) in steady state, with c seconds to
      compute it and l to read it: two slots hide the shorter one.

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
            # a read waits for the product that used the slot before
            freed = turn - min(slots, layers)
            after = (f"compute {freed}",) if freed >= 0 and slots < layers else ()
            steps.append(PlanStep(f"load {turn}", layer, "load", "load", after, size))
            needs = (f"load {turn}",)
        steps.append(PlanStep(f"compute {turn}", layer, "expert", "compute", needs, flops=work))
    return DevicePlan(tuple(steps), 1)


def ring_seconds(turns: int, slots: int, compute: float, load: float) -> float:
    """Return the seconds of layers that are read and computed in a ring of slots, step by step.

    turns: layers times rounds; slots: K, fewer than layers; compute, load: seconds to compute and
      to read a layer.
    """
    at_least("slots", slots, 1)
    # load i ends after load i - 1 and after compute i - K; compute i after load i and compute i - 1
    loads, computes = [0.0] * turns, [0.0] * turns
    for i in range(turns):
        # the slot is free once the layer that used it was computed
        free = computes[i - slots] if i >= slots else 0.0
        loads[i] = max(loads[i - 1] if i else 0.0, free) + load
        computes[i] = max(computes[i - 1] if i else 0.0, loads[i]) + compute
    return computes[-1] if turns else 0.0


def period(slots: int, compute: float, load: float) -> float:
    """Return the seconds that a layer of a ring takes in steady state: max(c, l, (c + l) / K).

    slots: K, the layers that the device has room for; compute, load: c and l, seconds to compute
      and to read one layer.
    """
    return max(compute, load, (compute + load) / slots)
