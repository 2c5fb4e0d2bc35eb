"""Plain expert parallelism with something wrong; a module, so that processes can import it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from intarsia.core import Routing
from intarsia.core.schema import setting
from intarsia.mixtures.experts import Experts
from intarsia.parallel import ExpertParallel
from intarsia.parallel.sharded import Sharded
from intarsia.placement import DevicePlan, ExpertSize, Topology, Trace
from intarsia.processes import Wire


@dataclass(frozen=True)
class Faulty(ExpertParallel):
    """`fault` is what is wrong."""

    fault: str = setting("", "The fault that is planted.")

    def rows(self, trace: Trace, devices: int) -> Tensor:
        mask = super().rows(trace, devices)
        return mask & False if self.fault == "no rows" else mask

    def plan(
        self,
        trace: Trace,
        size: ExpertSize,
        topology: Topology,
        *,
        backward: bool = False,
        past: Sequence[Tensor] = (),
    ) -> DevicePlan:
        device_plan = super().plan(trace, size, topology, backward=backward)
        if self.fault == "draws":
            step = replace(device_plan.steps[0], name=str(float(torch.rand(()))))
            return DevicePlan((step, *device_plan.steps), device_plan.devices)
        return device_plan

    def shard(self, experts: Experts, wire: Wire, topology: Topology, layers: int = 1) -> Sharded:
        right = super().shard(experts, wire, topology)
        wrong = Wrong(right.local, right.holds, meter=wire.meter, layer=wire.layer)
        wrong.fault = self.fault
        return wrong


class Wrong(Sharded):
    fault = ""

    def mix(self, x: Tensor, routing: Routing, numbers: Tensor | None = None) -> Tensor:
        if self.fault == "empty" and not len(x):
            raise RuntimeError("no rows")
        output = super().mix(x, routing, numbers)
        if self.fault == "sends more":
            counts = [1] * self.world
            assert self.meter is not None
            self.meter.note(f"{self.layer}.counts", 8, counts)
        if self.fault == "twice" or (self.fault == "dense" and len(routing.expert) > 2 * len(x)):
            return 2 * output
        return output * (1 + 1e-9) if self.fault == "rough" else output


def rank_plus(number: int) -> int:
    return dist.get_rank() + number


def misbehaves(fault: str) -> Any:
    """Process 2 does something; the others wait for it in an exchange."""
    if dist.get_rank() == 2:
        if fault == "dies":
            os._exit(3)
        if fault == "sleeps":
            time.sleep(60)
        raise ValueError("process 2 does not feel well")
    from intarsia.processes import exchanged

    return exchanged(torch.zeros(4), [1] * 4, [1] * 4)
