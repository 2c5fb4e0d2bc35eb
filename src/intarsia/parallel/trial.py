"""A strategy against one process: the same outputs and gradients, and the bytes that it planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..core import Routing
from ..core.errors import ConformanceError
from ..mixtures.experts import StackedExperts
from ..placement.plan import DevicePlan
from ..placement.topology import Topology
from ..placement.trace import Trace
from ..processes.exchange import Meter, Wire
from ..processes.units import own_part
from .layout import OwnExperts, size_of, units_of
from .strategy import Strategy, run

LINKS = Topology.two_level(2, 2)
CLOSE = 1e-12  # of the largest value, in float64


@dataclass(frozen=True)
class ExpertTrial:
    """Some tokens of some experts.  whole: integers, so that sums are exact in any order; past:
    batches before this one; bias, gated: of the experts."""

    routing: str = "plain"
    experts: int = 8
    width: int = 5
    hidden: int = 4
    layers: int = 2
    whole: bool = True
    past: int = 0
    bias: bool = False

    def trace(self, seed: int = 0) -> Trace:
        """Draw a routing: the experts of all tokens of some sequences, and their weights.

        The field `routing` names a special case: with "a process without tokens" there are three
        sequences for four processes, else five.
        """
        draws = torch.Generator().manual_seed(seed)
        sequences = 3 if self.routing == "a process without tokens" else 5
        tokens = 6 * sequences
        k = {"k = E": self.experts, "one expert": 1}.get(self.routing, min(2, self.experts))
        scores = torch.rand(tokens, self.layers, self.experts, generator=draws)
        # The even loads of uniform draws would hide errors in strategies that look for busy
        # experts.
        scores[:, :, 0] += 0.5  # expert 0 is busier
        if self.routing == "an expert without tokens":
            scores[:, :, -1] = -1
        if self.routing == "one expert":
            scores[:, :, 1] = 2
        row = torch.arange(tokens)
        weight = torch.randint(1, 4, (tokens, self.layers, k), generator=draws).float()
        return Trace(scores.topk(k).indices, self.experts, row // 6, row % 6, weight)

    def layers_of(self) -> list[StackedExperts]:
        """Draw each layer's experts in float64, the same each time; whole numbers if `whole`."""
        draws = torch.Generator().manual_seed(1)
        sizes = self.experts, self.width, self.hidden
        layers = [
            StackedExperts(*sizes, act="relu", bias=self.bias, gated=self.bias, generator=draws)
            for _ in range(self.layers)
        ]
        for layer in layers:
            layer.double()
            for weight in layer.parameters():
                # small whole numbers: their sums are exact in every order
                values = torch.randint(-2, 3, weight.shape, generator=draws).double()
                weight.data = values if self.whole else weight.data
        return layers

    def rows(self, count: int) -> Tensor:
        """Draw `count` rows of tokens in float64, the same each time; whole numbers if `whole`."""
        draws = torch.Generator().manual_seed(2)
        if self.whole:
            return torch.randint(-3, 4, (count, self.width), generator=draws).double()
        return torch.randn(count, self.width, generator=draws).double()


def alone(trace: Trace, x: Tensor, layers: Sequence[StackedExperts]) -> Tensor:
    """Compute x <- x + mixture(x) for all layers in one process, as reference: (N, d)."""
    for number, layer in enumerate(layers):
        recorded = trace.routing(number)
        weight = recorded.weight.to(x.dtype)
        x = x + layer.mix(
            x, Routing(recorded.token, recorded.expert, weight, len(x), trace.experts)
        )
    return x


def compare_with_one(strategy: Strategy, trial: ExpertTrial, topology: Topology = LINKS) -> int:
    """Compare experts shared out by a strategy with one process that has them all.

    Each of the topology's processes calls it. Returns the bytes that this process sent.
    Raises: ConformanceError where outputs, gradients or bytes differ.
    """
    rank, trace, full_layers = dist.get_rank(), trial.trace(), trial.layers_of()
    # the rows of this process
    mine = strategy.rows(trace, topology.devices)[rank]
    meter = Meter()
    parts = [
        strategy.shard(experts, Wire(n, None, meter), topology, trial.layers)
        for n, experts in enumerate(trial.layers_of())
    ]
    size, past = size_of(full_layers[0]), list[Tensor]()
    for seed in range(1, trial.past + 1):  # batches before, that strategies may have seen
        before = trial.trace(seed)
        plan = strategy.plan(before, size, topology, past=past)
        rows = trial.rows(len(before))[strategy.rows(before, topology.devices)[rank]]
        run(strategy, plan, parts, rows, before)
        past.append(before.load())
    # Only the batch that is compared counts; those before were there to be remembered.
    meter.sent.clear()
    plan = strategy.plan(trace, size, topology, backward=True, past=past)
    x = trial.rows(len(trace)).requires_grad_()
    local_rows = x.detach()[mine].requires_grad_()
    want, got = alone(trace, x, full_layers), run(strategy, plan, parts, local_rows, trace)
    same("outputs", got, want[mine], trial.whole)
    # A loss that is not linear, so that gradients depend on the outputs.
    want.square().sum().backward()
    got.square().sum().backward()
    assert x.grad is not None and local_rows.grad is not None
    same("gradients of rows", local_rows.grad, x.grad[mine], trial.whole)
    for layer, (part, experts) in enumerate(zip(parts, full_layers, strict=True)):
        of_part(f"gradients of layer {layer}", part, experts, trial.whole)
    as_planned(meter, plan)
    return int(sum(map(sum, meter.sent.values())))


def as_planned(meter: Meter, plan: DevicePlan) -> None:
    """Check that all processes sent the bytes of a plan, step by step.  Each process calls it.

    meter: counted the bytes that this process sent in each step.
    Raises: ConformanceError where steps or bytes differ.
    """
    metered = meter.gathered()
    links = {step.name: step.bytes for step in plan.steps if step.resource == "link"}
    if metered.keys() != links.keys():
        raise _differs("steps", sorted(metered), sorted(links))
    for name, sent in metered.items():
        planned = links[name]
        if planned is None or not torch.equal(sent, planned):
            raise _differs(
                f"bytes of {name}", sent.tolist(), None if planned is None else planned.tolist()
            )


def of_part(subject: str, part: OwnExperts, experts: StackedExperts, exact: bool) -> None:
    """Compare the gradients of a process's experts, or slices of them, with the full layer's.

    exact: bit for bit, else up to rounding.
    """
    local, lot = part.local, part.lot(dist.get_rank())
    for name, weight in local.named_parameters(recurse=False):
        full = own_part(units_of(local, name), getattr(experts, name).grad, *lot)
        # a process without rows has no gradient
        grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        same(f"{subject}: {name}", grad, full, exact)


def same(subject: str, got: Tensor, want: Tensor, exact: bool) -> None:
    """Raise ConformanceError unless two tensors are equal, or close where sums are rounded."""
    got, want = got.detach(), want.detach()
    largest = float(want.abs().max()) if want.numel() else 0.0
    limit = 0.0 if exact else CLOSE * max(1.0, largest)
    fits = got.shape == want.shape
    off = float((got - want).abs().max()) if fits and got.numel() else 0.0
    if not fits or not off <= limit:
        raise _differs(
            subject, f"{tuple(got.shape)}, off by {off:.1e}", f"{tuple(want.shape)}, equal"
        )


def _differs(subject: str, got: object, want: object) -> ConformanceError:
    place = f"{subject} in process {dist.get_rank()}"
    fix = "What is planned and what is carried out must be one thing; see Strategy."
    return ConformanceError(place, got=got, want=want, fix=fix)
