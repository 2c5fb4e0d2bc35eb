"""In each of four gloo processes: one process's numbers, and the plan's bytes to the byte."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing import assert_close

from intarsia.core import Routing
from intarsia.core.errors import ConfigError, IntarsiaError, TrainingError
from intarsia.mixtures.experts import StackedExperts
from intarsia.parallel import Sharded, carry_out, check_agreed, shard
from intarsia.placement import DevicePlan, ExpertSize, Placement, Topology, Trace, expert_parallel
from intarsia.placement.balance import JointSwaps
from intarsia.placement.engines import homes
from intarsia.placement.eplb import Eplb
from intarsia.processes import Meter

WORLD, EXPERTS, WIDTH, LAYERS = 4, 8, 5, 2
LINKS = Topology.two_level(2, 2)


def routed(case: str) -> Trace:
    """Tokens of five sequences; or process 3 has none, or expert 5, or all go everywhere."""
    draws = torch.Generator().manual_seed(0)
    sequences = 3 if case == "a process without tokens" else 5
    tokens, k = 6 * sequences, EXPERTS if case == "k = E" else 2
    scores = torch.rand(tokens, LAYERS, EXPERTS, generator=draws)
    if case == "an expert without tokens":
        scores[:, :, 5] = -1
    row = torch.arange(tokens)
    weight = torch.randint(1, 4, (tokens, LAYERS, k), generator=draws).float()
    return Trace(scores.topk(k).indices, EXPERTS, row // 6, row % 6, weight)


def layers_of(full: bool) -> list[StackedExperts]:
    draws = torch.Generator().manual_seed(1)
    layers = [StackedExperts(EXPERTS, WIDTH, 3, act="relu", generator=draws) for _ in range(LAYERS)]
    for layer in layers:
        layer.double()
        for weight in layer.parameters():
            values = torch.randint(-2, 3, weight.shape, generator=draws).double()
            weight.data = values if full else weight.data
    return layers


def rows_of(trace: Trace, full: bool) -> Tensor:
    draws = torch.Generator().manual_seed(2)
    if full:
        return torch.randint(-3, 4, (len(trace), WIDTH), generator=draws).double()
    return torch.randn(len(trace), WIDTH, generator=draws).double()


def alone(trace: Trace, x: Tensor, layers: list[StackedExperts]) -> Tensor:
    """Compute everything in one process."""
    for number, layer in enumerate(layers):
        routing = trace.routing(number)
        weight = routing.weight.to(x.dtype)
        x = x + layer.mix(x, Routing(routing.token, routing.expert, weight, len(x), EXPERTS))
    return x


def compared(case: str, engine: str, placed: Placement, exact: bool, train: bool) -> None:
    trace, rank = routed(case), dist.get_rank()
    mine = homes(trace, WORLD) == rank
    full, x = layers_of(exact), rows_of(trace, exact).requires_grad_()
    meter = Meter()
    nodes = LINKS.nodes()
    shards = [
        shard(experts, placed, n, nodes=nodes, meter=meter)
        for n, experts in enumerate(layers_of(exact))
    ]
    size = ExpertSize(WIDTH, 3, item=8, gated=False)
    plan = expert_parallel(trace, placed, size, engine=engine, nodes=nodes, backward=train)
    rows = x.detach()[mine].requires_grad_()
    with torch.set_grad_enabled(train):
        want, got = (
            alone(trace, x, full),
            carry_out(plan, shards, rows, trace, placed, engine=engine, meter=meter),
        )
    tolerance: dict[str, Any] = {
        "rtol": 0.0,
        "atol": 0.0 if exact else 1e-12 * float(want.abs().max()),
    }
    assert_close(got, want[mine], **tolerance)
    if train:
        want.square().sum().backward()
        got.square().sum().backward()
        assert x.grad is not None and rows.grad is not None
        scale = 1e-12 * float(x.grad.abs().max())
        assert_close(rows.grad, x.grad[mine], rtol=0.0, atol=0.0 if exact else scale)
        for number, (part, experts) in enumerate(zip(shards, full, strict=True)):
            units = placed.holds[number, rank]
            for (_, a), (_, b) in zip(
                part.local.named_parameters(), experts.named_parameters(), strict=True
            ):
                assert a.grad is not None and b.grad is not None
                close = 0.0 if exact else 1e-12 * max(1.0, float(b.grad.abs().max()))
                assert_close(a.grad, b.grad[units], rtol=0.0, atol=close)
    metered = meter.gathered()
    links = {step.name: step.bytes for step in plan.steps if step.resource == "link"}
    assert set(metered) == set(links), set(metered) ^ set(links)
    for name, sent in metered.items():
        assert torch.equal(sent, links[name]), (case, engine, name)  # pyright: ignore
    assert torch.equal(sum(metered.values()), plan.bytes())  # pyright: ignore


@contextmanager
def raises(kind: type[IntarsiaError], match: str) -> Iterator[None]:
    try:
        yield
    except kind as error:
        assert match in str(error), error
    else:
        raise AssertionError(f"no {kind.__name__} about {match}")


def refused() -> None:
    """Errors that every process raises, so that none waits."""
    trace = routed("")
    placed = Placement.contiguous(LAYERS, EXPERTS, WORLD)
    plan = expert_parallel(trace, placed, ExpertSize(WIDTH, 3 + (dist.get_rank() == 2)))
    with raises(TrainingError, match="one for all"):
        check_agreed(plan)
    check_agreed(DevicePlan((), WORLD))
    copies = Eplb(4).place(trace, LINKS)
    layer = shard(layers_of(True)[0], copies, 0)
    with raises(ConfigError, match="copies of experts"):
        layer(torch.zeros(1, WIDTH).double(), torch.zeros(1, dtype=torch.int64))
    with raises(ConfigError, match="those that it holds"):
        Sharded(copy.deepcopy(layers_of(True)[0]), placed.holds[0])
    with raises(ConfigError, match="4 processes"):
        shard(layers_of(True)[0], Placement.contiguous(1, EXPERTS, 2), 0)
    part = shard(layers_of(True)[0], placed, 0)
    x = rows_of(trace, True)[: 3 + dist.get_rank()]
    with torch.no_grad():
        assert_close(part.every(x), layers_of(True)[0].every(x), rtol=0, atol=0)


def of_engine(engine: str) -> None:
    trace = routed("")
    joint = JointSwaps().place(trace, LINKS)
    for exact in (True, False):
        compared("", engine, joint, exact, train=True)
    for case in ("a process without tokens", "an expert without tokens", "k = E"):
        compared(case, engine, joint, True, train=True)
    compared("", engine, Eplb(4).place(trace, LINKS), True, train=False)
    if engine == "home":
        everyone = Placement(joint.owner, torch.ones_like(joint.holds))
        compared("", engine, everyone, True, train=False)
        nothing = expert_parallel(trace, everyone, ExpertSize(WIDTH, 3))
        assert not nothing.bytes(("dispatch", "combine")).any(), "who holds all sends no rows"
