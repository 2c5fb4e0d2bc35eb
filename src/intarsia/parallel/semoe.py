"""SE-MoE's training side (arXiv:2205.10034): exchange by levels, weights fetched ahead.

The strategy keeps the experts of a device in host memory and brings each layer's in ahead of it.
Also here: embedding tables cut by columns, tasks of uneven weight dealt out, and many small tensors
sent as one. The ring of layers is `placement.layer_ring`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..core import Card, Paper
from ..core.checks import at_least
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..mixtures.experts import Experts
from ..placement.engines import ExpertSize
from ..placement.plan import DevicePlan, PlanStep
from ..placement.topology import Topology
from ..placement.trace import Trace
from ..processes.exchange import Wire
from .deepspeed import DeepSpeed, DeepSpeedExperts
from .strategy import Strategy

PREFETCH: Mapping[str, str] = MappingProxyType(
    {
        "none": "a layer waits for its dense weights, then for its experts",
        "1d": "experts of the next layer come from host memory while this one is computed",
        "2d": "and its dense weights over the links, too",
    }
)


@dataclass(frozen=True)
class SeMoe(Strategy):
    """Tables of places go inside a node first, then between equal places of the nodes; weights are
    brought in one layer ahead.

    Only the plan knows of memory: processes compute with the parts they hold, and the plan's loads
    and gathers of dense weights take time in the simulator.

    Raises: ConfigError for settings that cannot be, and as `DeepSpeed` does.
    Not for experts that fit into the devices: plain exchanges then need no loads.
    Source: arXiv:2205.10034, sections 3.1 and 3.3.
    """

    exchange: str = setting(
        "hierarchical", "The way of the tables between devices.", choices=("flat", "hierarchical")
    )
    prefetch: str = setting(
        "2d",
        'The weights that come ahead: "none"; "1d", the experts of layer i + 1 are read from '
        'host memory while layer i is computed; "2d", the dense weights of layer i + 1, which '
        "all devices hold in parts (ZeRO-3), are gathered over the links in that time, too.",
        choices=tuple(PREFETCH),
    )
    dense: int = setting(
        0, "The bytes of a layer's dense weights; 0 leaves them out of the plan.", least=0
    )

    def __post_init__(self) -> None:
        check(self)

    def plan(
        self,
        trace: Trace,
        size: ExpertSize,
        topology: Topology,
        *,
        backward: bool = False,
        past: Sequence[Tensor] = (),
    ) -> DevicePlan:
        """Return what one batch sends, loads and computes, as steps.

        They are DeepSpeed's steps, and for each layer two that bring weights in: "load", the
        experts' from host memory, and "gather", the dense weights from all devices, if `dense` is
        not 0.
        """
        inner = DeepSpeed(1, self.exchange).plan(trace, size, topology, backward=backward)
        devices, experts = topology.devices, trace.experts
        weight_bytes = size.weights * experts // devices  # a slice of one, or some
        # on the diagonal: from a device's own host
        load = torch.eye(devices, dtype=torch.int64) * weight_bytes
        # ZeRO-3: each device holds 1 / D of the dense weights and sends it to every other; rounded
        # up to whole bytes.
        part = torch.full((devices, devices), -(-self.dense // devices)).fill_diagonal_(0)
        steps: list[PlanStep] = []
        began = [""]  # began[i]: name of the step after which layer i begins, "" for the first

        def fetch_step(kind: str, layer: int, before: str) -> PlanStep:
            """Return a step that brings weights in, from host memory or over the links."""
            resource, sent = ("load", load) if kind == "load" else ("link", part)
            after = (before,) if before else ()
            return PlanStep(f"{layer}.{kind}", layer, kind, resource, after, bytes=sent)

        for step in inner.steps:
            name, layer = step.name, step.layer
            if step.phase == "counts":  # the first exchange of a layer: numbers of rows to come
                # 1D prefetch: the load of layer i starts as soon as layer i - 1 begins, not when
                # layer i does.
                early = layer and self.prefetch != "none"
                steps.append(fetch_step("load", layer, began[layer - 1 if early else layer]))
                if self.dense and (self.prefetch != "2d" or not layer):
                    steps.append(fetch_step("gather", layer, began[layer]))
                waits = (f"{layer}.gather",) if self.dense else ()
                step = replace(step, after=tuple(n for n in (began[layer], *waits) if n))
            elif step.phase == "expert" and not name.endswith(".back"):
                # 2D prefetch: while the experts of this layer are computed, the links gather the
                # dense weights of the next.
                if self.dense and self.prefetch == "2d" and layer + 1 < trace.layers:
                    steps.append(fetch_step("gather", layer + 1, step.after[0]))
                step = replace(step, after=(*step.after, f"{layer}.load"))
            steps.append(step)
            # The next layer begins when the outputs of this one are back.
            if step.resource == "link" and step.phase.startswith("combine"):
                began[layer + 1 :] = [name]
        return DevicePlan(tuple(steps), devices)

    def shard(
        self, experts: Experts, wire: Wire, topology: Topology, layers: int = 1
    ) -> DeepSpeedExperts:
        """Copy this process's experts of a layer, as `DeepSpeed` shares them out."""
        return DeepSpeed(1, self.exchange).shard(experts, wire, topology)


class ColumnEmbedding(nn.Module):
    """A table of V rows of H numbers; each of D processes keeps H / D columns of all rows.

    table: (V, H), the whole, alike in all processes. x: ids (...), of this process's own tokens
    -> (..., H): ids go to every process, each sends its columns back; gradients go the same ways,
    and come as sums over all processes.

    Raises: ConfigError for H that D does not divide.
    Source: arXiv:2205.10034, section 3.4.
    """

    def __init__(self, table: Tensor, wire: Wire) -> None:
        super().__init__()
        width = table.shape[1]
        if width % wire.world:
            works = [d for d in range(1, wire.world + 1) if width % d == 0]
            got, want = f"{width} columns for {wire.world} processes", "a number that divides them"
            raise ConfigError("embedding", got=got, want=want, fix=f"Try {works[-1]} processes.")
        columns = width // wire.world
        part = table.detach()[:, wire.rank * columns : (wire.rank + 1) * columns]
        self.weight, self.wire = nn.Parameter(part.clone()), wire

    def forward(self, ids: Tensor) -> Tensor:
        """Look up this process's tokens in the table, with its H columns spread over processes.

        ids: (...) int64, the tokens' numbers.  -> (..., H). Every process calls it.
        """
        wire, flat = self.wire, ids.reshape(-1)
        count = torch.tensor([len(flat)], device=ids.device)
        counts = wire.told(count, "counts").flatten().tolist()
        # Every process looks all ids up in its own columns, then sends each process the columns of
        # its ids.
        all_ids = wire.send(flat.repeat(wire.world), [len(flat)] * wire.world, counts, "ids")
        columns = nn.functional.embedding(all_ids, self.weight)  # (all ids, H / D)
        back = wire.send(columns, counts, [len(flat)] * wire.world, "columns")
        rows = back.view(wire.world, len(flat), back.shape[1]).transpose(0, 1)
        return rows.reshape(*ids.shape, wire.world * columns.shape[1])


def bucketed(tensors: Sequence[Tensor], collective: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Apply a collective, such as an all-reduce, to many tensors by one call on a joined buffer.

    tensors: of any shapes, of one dtype; collective: takes a flat tensor and returns one of as many
      numbers. Returns its result, cut into the shapes of `tensors`.
    Source: arXiv:2205.10034, section 3.2 (fusion communication).
    """
    sizes = [t.numel() for t in tensors]
    # one call instead of one for each tensor
    flat = collective(torch.cat([t.reshape(-1) for t in tensors]))
    return [part.view(t.shape) for part, t in zip(flat.split(sizes), tensors, strict=True)]


def elastic(weights: Sequence[float], devices: int) -> list[list[float]]:
    """Deal tasks out to devices: light tasks share a device, heavy ones are split.

    weights: the work of each task of one model; devices: D. Returns (D, tasks), how much of each
      task's work a device gets. A task above the mean work of a device is first cut into equal
      parts no longer than that; then the longest parts go first, each to the least loaded device.
    The busiest device has at most 4 / 3 of the work that it would have at best (Graham).
    Raises: ConfigError for no device, or work below 0.
    Source: arXiv:2205.10034, section 3.5.
    """
    at_least("devices", devices, 1)
    for weight in weights:
        at_least("weight of a task", weight, 0)
    mean = sum(weights) / devices
    parts: list[tuple[float, int]] = []
    for task, weight in enumerate(weights):
        # A task above the mean is cut into parts no longer than the mean; 1e-12 keeps rounding from
        # adding a part.
        count = min(devices, max(1, math.ceil(weight / mean - 1e-12))) if mean else 1
        parts += [(weight / count, task)] * count
    shares = [[0.0] * len(weights) for _ in range(devices)]
    total = [0.0] * devices
    # Longest processing time first: each part goes to the least loaded device; ties are broken by
    # number, so that all processes agree.
    for work, task in sorted(parts, key=lambda p: (-p[0], p[1])):
        device = min(range(devices), key=lambda d: (total[d], d))
        shares[device][task] += work
        total[device] += work
    return shares


def memory(dense: int, sparse: int, devices: int, active: float = 1.0) -> Mapping[str, float]:
    """Estimate the bytes that a training with half-precision weights and AdamW needs.

    dense, sparse: D and S, the numbers of parameters outside and inside of experts; devices: N;
    active: alpha, the share of the experts' parameters that is in use. Returns the bytes by place:
    "gpu", of each device, (16 D + 4 alpha S) / N; "cpu", 16 alpha S in all; "disk", 12 S in all.
    Source: arXiv:2205.10034, section 3.1, with dense states shared out among the devices (ZeRO-3).
    """
    at_least("devices", devices, 1)
    return {
        "gpu": (16 * dense + 4 * active * sparse) / devices,
        "cpu": 16 * active * sparse,
        "disk": 12.0 * sparse,
    }


CARD = Card(
    "semoe",
    kind="parallel",
    config=SeMoe,
    paper=Paper(
        "2205.10034",
        2022,
        "SE-MoE: A Scalable and Efficient Mixture-of-Experts Distributed Training and Inference "
        "System",
    ),
    summary="Exchange by levels of the network; weights brought in one layer ahead.",
    family="experts on several devices",
    names=("SE-MoE", "MoESys"),
)
