"""Strategies in one process beside the experts themselves: types of numbers, nothing, refusals."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing import assert_close

import intarsia
from intarsia.core import Routing
from intarsia.core.errors import ConfigError
from intarsia.mixtures.experts import StackedExperts
from intarsia.mixtures.mixture import Mixture
from intarsia.parallel import DeepSpeed, ExpertParallel, Fssdp, SeMoe, Strategy, Tutel, running
from intarsia.parallel.auto import Auto
from intarsia.parallel.blocks import planned_capacity
from intarsia.parallel.layout import stacked
from intarsia.parallel.places import places
from intarsia.parallel.trial import LINKS, ExpertTrial
from intarsia.placement import ExpertSize, Topology
from intarsia.placement.engines import destinations
from intarsia.processes.exchange import Wire

from ..refusals import refused

STRATEGIES = (
    ExpertParallel(),
    Fssdp(),
    Fssdp(rematerialise=True),
    Tutel(0),
    Tutel(1, chunks=3),
    DeepSpeed(),
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of this process."""
    store = tmp_path_factory.mktemp("store") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def experts(**settings: object) -> StackedExperts:
    return StackedExperts(4, 8, 6, generator=torch.Generator().manual_seed(0), **settings)  # pyright: ignore


def rows(count: int = 10) -> tuple[Tensor, Routing]:
    """Float32 rows, and weights of two experts each."""
    draws = torch.Generator().manual_seed(1)
    index = torch.rand(count, 4, generator=draws).topk(2).indices
    weight = torch.rand(count, 2, generator=draws)
    return torch.randn(count, 8, generator=draws), Routing.from_topk(index, weight, 4)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_half_precision_is_that_of_the_experts(strategy: Strategy) -> None:
    """Under autocast, gradients too; and rows of bfloat16 with float32 weights of a gate."""
    full, (x, routing) = experts(), rows()
    part = strategy.shard(full, Wire(), Topology.uniform(1))
    with torch.autocast("cpu", torch.bfloat16):
        want, got = full.mix(x, routing), part.mix(x, routing)
    assert got.dtype == want.dtype
    assert_close(got, want, rtol=2**-6, atol=2**-6)
    want.float().square().sum().backward()
    got.float().square().sum().backward()
    # tables have other rows, whose sums are rounded in another order; outputs that are computed
    # again for the backward were computed without one, by another kernel
    again = isinstance(strategy, Fssdp) and strategy.rematerialise
    rounded = again or isinstance(strategy, Tutel | DeepSpeed)
    rtol, atol = (2**-6, 2**-6) if rounded else (0.0, 1e-6)
    for ours, its in zip(part.parameters(), full.parameters(), strict=True):
        assert ours.grad is not None and its.grad is not None
        assert_close(ours.grad, its.grad, rtol=rtol, atol=atol)
    half = full.bfloat16()
    part = strategy.shard(half, Wire(), Topology.uniform(1))
    with torch.no_grad():
        want, got = (experts_of.mix(x.bfloat16(), routing) for experts_of in (half, part))
    assert_close(got, want, rtol=2**-6, atol=2**-6)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_nobody_has_rows(strategy: Strategy) -> None:
    x, routing = rows(0)
    part = strategy.shard(experts(), Wire(), Topology.uniform(1))
    assert part.mix(x, routing).shape == (0, 8)
    nobody = torch.full((6, 2), -1)
    assert planned_capacity(nobody, torch.ones(1, 6, dtype=torch.bool), 4, 3) == 3


def test_a_plan_of_slices_that_cannot_be_is_refused_and_not_chosen() -> None:
    """Two experts of five hidden units on four processes: neither can be cut in two."""
    trace, size = ExpertTrial(experts=2).trace(), ExpertSize(8, 5)
    for strategy in (Tutel(), Tutel(0), DeepSpeed(), SeMoe()):
        with refused(ConfigError, what="slices of experts", got="5 hidden units for 2 parts"):
            strategy.plan(trace, size, LINKS)
    assert isinstance(Auto(tokens=64).chosen(2, size, LINKS), Fssdp)


def test_nodes_of_uneven_size_are_tuned_without_levels() -> None:
    bandwidth = torch.full((3, 3), 1e9)
    bandwidth[0, 1] = bandwidth[1, 0] = 1e11
    links = Topology(bandwidth, torch.zeros(3, 3), *(torch.full((3,), 1e12),) * 3)
    tuned = Tutel.tuned(ExpertTrial(experts=3).trace(), ExpertSize(8, 6), links)
    assert tuned.exchange == "flat"


def test_an_activation_that_learns_is_refused() -> None:
    """Its weight has no row for each expert, and would be lost."""
    with refused(ConfigError, what="experts", got="'act.weight', which all experts share"):
        stacked(experts(act=nn.PReLU()))


@pytest.mark.parametrize(
    "router", [intarsia.routers.Switch(4), intarsia.routers.ExpertChoice(4)], ids=repr
)
def test_routers_of_the_whole_batch_are_refused(router: intarsia.routers.Switch) -> None:
    """Half of the rows have other experts than among all of them."""
    draws = torch.Generator().manual_seed(0)
    mixture = Mixture(experts(), router.build(8, generator=draws))
    with refused(ConfigError, what="parallel", want="routers of each row alone"):
        places(nn.Sequential(mixture))


def test_tensors_stay_on_the_device_of_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Placements are on the CPU, whatever the rows are on; NCCL takes nothing that is there."""
    holds, nodes = torch.eye(2, dtype=torch.bool), torch.zeros(2, dtype=torch.int64)
    expert = torch.zeros(3, 1, dtype=torch.int64, device="meta")
    node = row = torch.zeros(3, dtype=torch.int64, device="meta")
    assert destinations(expert, node, holds, nodes, row).device.type == "meta"
    devices: list[str] = []

    def summed(value: Tensor, *_: object, group: object = None) -> None:
        devices.append(value.device.type)
        if len(devices) == 2:
            raise StopIteration

    monkeypatch.setattr(running, "device_of", lambda _: torch.device("meta"), raising=False)
    monkeypatch.setattr(running.dist, "all_reduce", summed)
    with pytest.raises(StopIteration):
        running.check_alike("plan", "ff")
    assert devices == ["meta", "meta"]
