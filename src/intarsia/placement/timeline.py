"""Simulated time of a plan on a topology, by one pass over its steps."""

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
    """Step on one device, in seconds from the start.  waited: index of the span it waited for."""

    name: str
    resource: str
    device: int
    start: float
    end: float
    waited: int | None = None


@dataclass(frozen=True)
class Timeline:
    """Timeline of all devices: a span for each step on each device."""

    spans: tuple[Span, ...]

    @property
    def seconds(self) -> float:
        """Seconds from the start to the end of the last step."""
        return max((span.end for span in self.spans), default=0.0)

    def busy(self, resource: str) -> float:
        """Return how many seconds the busiest device uses a resource: compute, link or load."""
        seconds: dict[int, float] = {}
        for span in self.spans:
            if span.resource == resource:
                seconds[span.device] = seconds.get(span.device, 0.0) + span.end - span.start
        return max(seconds.values(), default=0.0)

    def critical(self) -> tuple[Span, ...]:
        """Return the critical path: the chain of spans that decides the end, first to last.

        A span is one step on one device; each was waited for by the next.
        """
        index = max(range(len(self.spans)), key=lambda i: self.spans[i].end, default=None)
        path: list[Span] = []
        while index is not None:
            path.append(self.spans[index])
            index = self.spans[index].waited
        return tuple(reversed(path))

    def binds(self) -> Mapping[str, float]:
        """Return the seconds of the critical path that go to each resource: compute, link, load."""
        seconds: dict[str, float] = dict.fromkeys(RESOURCES, 0.0)
        for span in self.critical():
            seconds[span.resource] += span.end - span.start
        return seconds

    def chrome(self) -> str:
        """Return trace events in JSON for chrome://tracing and Perfetto, times in microseconds."""
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
        source = {"by": "intarsia"}
        return json.dumps({"otherData": source, "traceEvents": events, "displayTimeUnit": "ms"})


def simulate(plan: DevicePlan, topology: Topology) -> Timeline:
    """Compute when each step of a plan starts and ends on each device.

    A step starts when its resources are free and the steps it waits for have ended. plan: the
    steps; topology: speeds of devices and links.
    compute: flops_d / F_d on each device d on its own, F_d its speed. load: its bytes over the
      device's own host-to-device link. link: a collective; it begins and ends on all devices at
      once, and takes max_d max(sum_j b_dj / B_dj, sum_i b_id / B_id) + the largest latency among
      the pairs used, b_ij the bytes from i to j and B_ij the bandwidth.
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
            _spans_before(step, device, free, ended, collective=together)
            for device in range(plan.devices)
        ]
        if together:
            # a collective begins at once everywhere, so it waits for all devices' predecessors
            joint = [index for indices in before for index in indices]
            before = [joint] * plan.devices
        step_spans: list[int] = []
        for device, waits in enumerate(before):
            last = max(waits, key=lambda at: spans[at].end, default=None)
            # the latest predecessor decides the start, and is remembered for the critical path
            start = 0.0 if last is None else spans[last].end
            end = start + float(takes[device])
            spans.append(Span(step.name, step.resource, device, start, end, last))
            step_spans.append(len(spans) - 1)
        for device, at in enumerate(step_spans):
            free[step.resource, device] = at
        ended[step.name] = step_spans
    return Timeline(tuple(spans))


def _spans_before(
    step: PlanStep,
    device: int,
    free: Mapping[tuple[str, int], int],
    ended: Mapping[str, list[int]],
    *,
    collective: bool,
) -> list[int]:
    """Return the indices of the spans that a step waits for on a device."""
    waits = [ended[name][device] for name in step.after]
    if collective:
        waits = [index for name in step.after for index in ended[name]]
    # the last span of this resource and device
    if (step.resource, device) in free:
        waits.append(free[step.resource, device])
    return waits


def durations(step: PlanStep, topology: Topology) -> Tensor:
    """Return how many seconds a step takes on each device, (D,) float64.

    compute: operations over speed. load: bytes over the host-to-device bandwidth. link: for all
      devices the time of the slowest, which sends and receives at once, and the largest latency.
    """
    none = torch.zeros(topology.devices, dtype=torch.float64)
    if step.resource == "compute":
        return none if step.flops is None else step.flops.double() / topology.flops
    if step.bytes is None:
        return none
    # each device sends its row and receives its column at the same time; the slowest decides
    sent = step.bytes.double()
    if step.resource == "load":
        return sent.diag() / topology.load
    used = sent > 0
    if not bool(used.any()):
        return none
    diagonal = torch.eye(topology.devices, dtype=torch.bool)
    takes = (sent / topology.bandwidth.masked_fill(diagonal, torch.inf)).nan_to_num()
    slowest = torch.maximum(takes.sum(1), takes.sum(0)).max()
    return none + slowest + topology.latency[used].max()


def rows_to_hide(item: int, topology: Topology) -> float:
    """Return for how many rows an expert takes as long to compute as to load, M* = b F / (2 B).

    item: b, bytes of a weight; topology: F and B, speed and host-to-device bandwidth of its first
      device. An expert of width d and h hidden units takes 3 d h b / B to load, 6 M d h / F to
      compute for M rows.
    """
    return item * float(topology.flops[0]) / (2 * float(topology.load[0]))
