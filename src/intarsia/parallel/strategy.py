"""What a strategy offers: a plan of exchanges and computations, and the part of each process."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..mixtures.experts import Experts
from ..placement.engines import ExpertSize, chain, homes
from ..placement.plan import DevicePlan, PlanStep
from ..placement.topology import Topology
from ..placement.trace import Trace
from ..processes.exchange import Group, Meter, Wire
from ..processes.parallelism import WholeModel
from .attached import attached
from .layout import OwnExperts
from .running import check_agreed, routed


class Strategy(abc.ABC):
    """Settings of a way to compute experts on several devices (kind "parallel").

    It is a `Parallelism` for the training loop.
    """

    def rows(self, trace: Trace, devices: int) -> Tensor:
        """Return which device has which rows, (D, N) bool; here sequences are dealt out in turn."""
        return dealt(trace, devices)

    @abc.abstractmethod
    def plan(
        self,
        trace: Trace,
        size: ExpertSize,
        topology: Topology,
        *,
        backward: bool = False,
        past: Sequence[Tensor] = (),
    ) -> DevicePlan:
        """Return what one batch with the trace's routing sends and computes, as steps.

        trace: which experts each token has in each layer; size: one expert's widths and bytes;
          topology: devices and links; backward: True adds the steps of the gradients; past: (L, E)
          loads of the batches before, newest last, for strategies that look at them.
        """

    @abc.abstractmethod
    def shard(
        self, experts: Experts, wire: Wire, topology: Topology, layers: int = 1
    ) -> OwnExperts:
        """Return a module with a copy of the experts (or slices of them) that this process keeps.

        experts: all experts of a layer, which are not changed; wire: sends and counts the layer's
          exchanges between processes; topology: devices and links; layers: number of such layers.
        """

    def links(self, world: int, group: Group = None) -> Topology:
        """Return the links between processes; alike ones make a run repeatable."""
        return Topology.uniform(world)

    def check_trains(self) -> None:  # noqa: B027 - most settings can be trained with
        """Raise ConfigError for settings with which no training is shared out."""

    def attached(
        self, model: nn.Module, *, meter: Meter | None = None, gather: bool = True
    ) -> AbstractContextManager[WholeModel]:
        """Share a model's experts out among the processes inside the `with` block.

        model: with mixtures of experts; meter: counts the bytes sent; gather: True puts all experts
          back into the model at the end. See `parallel.attached.attached`.
        """
        return attached(model, self, meter=meter, gather=gather)


def dealt(trace: Trace, devices: int, alike: int = 1) -> Tensor:
    """Deal a trace's sequences out to devices in turn.

    trace: N recorded tokens (rows) in sequences; devices: D; alike: the number of consecutive
      devices that get the same sequences.  -> (D, N) bool, which device has which rows.
    """
    home = homes(trace, devices // alike)
    return home[None] == torch.arange(devices)[:, None] // alike


def check_devices(topology: Topology, wire: Wire) -> None:
    """Raise ConfigError for a topology of another number of devices than there are processes."""
    if topology.devices != wire.world:
        got, want = f"{topology.devices} devices", f"{wire.world}, as there are processes"
        raise ConfigError("topology", got=got, want=want, fix="Describe these processes.")


def run(
    strategy: Strategy,
    plan: DevicePlan,
    layers: Sequence[Experts],
    x: Tensor,
    trace: Trace,
    *,
    group: Group = None,
) -> Tensor:
    """Compute x <- x + mixture(x), layer after layer, with the trace's routing, as `plan` says.

    strategy: the one that made plan and layers; plan: what all processes send and compute; layers:
      this process's experts of each layer, from `strategy.shard`; x: (n, d), this process's rows of
      the trace, in order; trace: which experts each token has; group: the processes, None = all.
      Returns the same rows, (n, d). Gradients take the same ways back.
    Raises: TrainingError where processes have different plans; ConfigError for other rows.
    """
    check_agreed(plan, group)
    rank = dist.get_rank(group)
    numbers = strategy.rows(trace, plan.devices)[rank].nonzero().flatten()
    if len(x) != len(numbers):
        got, want = f"{len(x)} rows", f"the {len(numbers)} of process {rank}"
        raise ConfigError("rows", got=got, want=want, fix="Take those of strategy.rows(...).")
    for number, layer in enumerate(layers):
        mix: Callable[..., Tensor] = layer.mix
        x = x + mix(x, routed(trace, numbers, number, x), numbers)
    return x


def chained(forward: list[PlanStep], back: list[PlanStep], devices: int) -> DevicePlan:
    """Return a plan in which each step waits for the one before, backward steps last."""
    return DevicePlan(chain([*forward, *back]), devices)


def lined_up(
    steps: Sequence[PlanStep], after: Mapping[str, tuple[str, ...]]
) -> tuple[PlanStep, ...]:
    """Make each step wait for the one before, or for those that `after` names for it."""
    lined: list[PlanStep] = []
    for step in steps:
        before = (lined[-1].name,) if lined else ()
        lined.append(replace(step, after=after.get(step.name, before)))
    return tuple(lined)
