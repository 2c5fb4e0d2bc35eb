"""How long a plan takes on a topology: one pass over its steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigError
from .plan import RESOURCES, DevicePlan, PlanStep
from .topology import Topology


@dataclass(frozen=True)
class Span:
    """A step on a device, in seconds from the start.  waited: the span that it began after."""

    name: str
    resource: str
    device: int
    start: float
    end: float
    waited: int | None = None


@dataclass(frozen=True)
class Timeline:
    """What every device did when."""

    spans: tuple[Span, ...]

    @property
    def seconds(self) -> float:
        """Until the last step has ended."""
        return max((span.end for span in self.spans), default=0.0)

    def busy(self, resource: str) -> float:
        """Seconds in which the busiest device uses a resource."""
        found: dict[int, float] = {}
        for span in self.spans:
            if span.resource == resource:
                found[span.device] = found.get(span.device, 0.0) + span.end - span.start
        return max(found.values(), default=0.0)

    def critical(self) -> tuple[Span, ...]:
        """The chain of spans that the end waited for, first to last."""
        at = max(range(len(self.spans)), key=lambda i: self.spans[i].end, default=None)
        found: list[Span] = []
        while at is not None:
            found.append(self.spans[at])
            at = self.spans[at].waited
        return tuple(reversed(found))

    def binds(self) -> Mapping[str, float]:
        """Which resource how many seconds of the critical chain belong to."""
        found: dict[str, float] = dict.fromkeys(RESOURCES, 0.0)
        for span in self.critical():
            found[span.resource] += span.end - span.start
        return found

    def chrome(self) -> str:
        """Trace events as chrome://tracing and Perfetto open them; times in microseconds."""
        events = [
            {
                "name": span.name,
                "cat": span.resource,
                "ph": "X",
                "ts": span.start * 1e6,
                "dur": (span.end - span.start) * 1e6,
                "pid": span.device,
                "tid": span.resource,
            }
            for span in self.spans
        ]
        by = {"by": "intarsia"}
        return json.dumps({"otherData": by, "traceEvents": events, "displayTimeUnit": "ms"})


def simulate(plan: DevicePlan, topology: Topology) -> Timeline:
    """Each step starts when its resources are free and what it waits for has ended.

    compute: flops_d / F_d on each device by itself.  load: its bytes over the device's own
    host-to-device link.  link: a collective; it begins and ends on all devices at once, and takes
    max_d max(sum_j b_dj / B_dj, sum_i b_id / B_id) + the largest latency among the pairs used.
    A step waits for its predecessors on all devices where it or they are collectives, else on its
    own device.

    Raises: ConfigError for a topology of another number of devices.
    """
    if plan.devices != topology.devices:
        got, want = f"{topology.devices} devices", f"{plan.devices}, as the plan has"
        raise ConfigError("topology", got=got, want=want, fix="Plan for this topology.")
    spans: list[Span] = []
    free: dict[tuple[str, int], int] = {}  # resource, device -> its last span
    ended: dict[str, list[int]] = {}  # step -> its span on each device
    for step in plan.steps:
        takes = durations(step, topology)
        together = step.resource == "link"
        before = [
            _before(step, device, free, ended, every=together) for device in range(plan.devices)
        ]
        if together:
            joint = [at for some in before for at in some]
            before = [joint] * plan.devices
        made: list[int] = []
        for device, waits in enumerate(before):
            last = max(waits, key=lambda at: spans[at].end, default=None)
            start = 0.0 if last is None else spans[last].end
            end = start + float(takes[device])
            spans.append(Span(step.name, step.resource, device, start, end, last))
            made.append(len(spans) - 1)
        for device, at in enumerate(made):
            free[step.resource, device] = at
        ended[step.name] = made
    return Timeline(tuple(spans))


def _before(
    step: PlanStep,
    device: int,
    free: Mapping[tuple[str, int], int],
    ended: Mapping[str, list[int]],
    *,
    every: bool,
) -> list[int]:
    """The spans that a step waits for on a device."""
    found = [ended[name][device] for name in step.after]
    if every:
        found = [at for name in step.after for at in ended[name]]
    if (step.resource, device) in free:
        found.append(free[step.resource, device])
    return found


def durations(step: PlanStep, topology: Topology) -> Tensor:
    """Seconds of a step on each device.  Returns (D,) float64."""
    none = torch.zeros(topology.devices, dtype=torch.float64)
    if step.resource == "compute":
        return none if step.flops is None else step.flops.double() / topology.flops
    if step.bytes is None:
        return none
    sent = step.bytes.double()
    if step.resource == "load":
        return sent.diag() / topology.load
    used = sent > 0
    if not bool(used.any()):
        return none
    own = torch.eye(topology.devices, dtype=torch.bool)
    takes = (sent / topology.bandwidth.masked_fill(own, torch.inf)).nan_to_num()
    slowest = torch.maximum(takes.sum(1), takes.sum(0)).max()
    return none + slowest + topology.latency[used].max()


def rows_to_hide(item: int, topology: Topology) -> float:
    """M* = b F / (2 B): with so many rows, an expert's product takes as long as loading it.

    item: b, bytes of a weight; F and B of the first device. 3 d h b / B to load, 6 M d h / F to
    compute, whatever d and h.
    """
    return item * float(topology.flops[0]) / (2 * float(topology.load[0]))
