"""A rearranged net has the outputs it had, its blocks keep more, odd joins are refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

import intarsia
from intarsia.core.errors import ConfigError, TargetError
from intarsia.hosts.anatomy.channel_groups import channels_of
from intarsia.partitions import keep_row_blocks, keep_shares
from intarsia.partitions.row_blocks import kept_in_blocks, row_order
from intarsia.schedules import Gradual
from intarsia.sparse import SparseByteNn

from ..refusals import refused


class Net(nn.Module):
    """Stem, two residual blocks, one with squeeze and excitation, a k x k layer, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 10, 3, 2, 1, bias=False), nn.BatchNorm2d(10)
        self.expand = nn.ModuleList(nn.Conv2d(10, 14, 1) for _ in range(2))
        self.depth = nn.ModuleList(nn.Conv2d(14, 14, 3, 1, 1, groups=14) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(14) for _ in range(2))
        self.squeeze, self.excite = nn.Conv2d(14, 3, 1), nn.Conv2d(3, 14, 1)
        self.project = nn.ModuleList(nn.Conv2d(14, 10, 1) for _ in range(2))
        self.last = nn.Conv2d(10, 6, 3, 2)
        self.hidden, self.head = nn.Linear(6 * 3 * 3, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        for expand, depth, norm, project in zip(
            self.expand, self.depth, self.norms, self.project, strict=True
        ):
            y = norm(depth(torch.relu(expand(x))))
            if expand is self.expand[1]:
                mean = torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))
                y = y * torch.sigmoid(self.excite(mean))
            x = x + project(y)
        return self.head(torch.relu(self.hidden(torch.flatten(self.last(x), 1))))


def random_net() -> nn.Module:
    """Make a net in evaluation; each batch norm has statistics of its own."""
    torch.manual_seed(0)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_var, module.running_mean, module.weight, module.bias):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5)
    return net.eval()


def picture() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def outputs(net: nn.Module) -> Tensor:
    return net(picture())


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_a_rearranged_net_has_the_outputs_it_had(rows: int) -> None:
    net = random_net()
    before, names = outputs(net), [(n, p.shape) for n, p in net.named_parameters()]
    weight = net.get_parameter("expand.0.weight").clone()
    done = intarsia.apply(net, SparseByteNn(density=0.5, rows=rows))
    assert done is net
    assert not torch.equal(net.get_parameter("expand.0.weight"), weight)  # something moved
    assert [(n, p.shape) for n, p in net.named_parameters()] == names
    assert_close(outputs(net), before, atol=1e-5, rtol=1e-5)


def test_channels_stand_where_the_plan_puts_them() -> None:
    net, method = random_net(), SparseByteNn(density=0.5, rows=2)
    before, plan = net.get_parameter("expand.0.bias").clone(), method.plan(net)
    groups = zip(channels_of(net).free, plan.decided["orders"], strict=True)
    (order,) = (order for group, order in groups if "expand.0" in group.makes)
    method.apply(net, plan)
    assert torch.equal(net.get_parameter("expand.0.bias"), before[torch.tensor(order)])


def test_a_net_of_timm_is_rearranged() -> None:
    net = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = net(x)
        intarsia.apply(net, SparseByteNn(density=0.5, rounds=0))
        assert_close(net(x), before, atol=1e-5, rtol=1e-5)


def test_residual_additions_join_their_layers_and_ends_stay() -> None:
    channels = channels_of(random_net())
    by_maker = {path: set(group.makes) for group in channels.groups for path in group.makes}
    assert by_maker["stem"] == {"stem", "project.0", "project.1"}
    assert by_maker["expand.1"] == {"expand.1", "excite"}
    assert {p for g in channels.groups if g.fixed for p in g.makes} == {"head"}
    assert set(channels.layers) == {
        *("expand.0", "expand.1", "project.0", "project.1", "last", "hidden"),
    }


weights = st.tuples(st.integers(2, 13), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))


@settings(max_examples=8)
@given(weights, st.floats(0.1, 1))
def test_an_order_keeps_at_least_what_the_rows_kept(
    sizes: tuple[int, int, int, int], density: float
) -> None:
    out, ins, rows, seed = sizes
    draw = torch.Generator().manual_seed(seed)
    layer_weights = [torch.rand(out, ins, generator=draw), torch.rand(out, 3, generator=draw)]
    order = row_order(layer_weights, rows, density)
    assert sorted(order.tolist()) == list(range(out))
    plain = torch.arange(out)
    kept_sums = [kept_in_blocks(layer_weights, some, rows, density) for some in (order, plain)]
    assert kept_sums[0] >= kept_sums[1] - 1e-5


@settings(max_examples=15)
@given(weights, st.floats(0, 1))
def test_blocks_are_whole_and_of_one_row_they_are_weights(
    sizes: tuple[int, int, int, int], density: float
) -> None:
    out, ins, rows, seed = sizes
    score = torch.rand(out, ins, 3, 3, generator=torch.Generator().manual_seed(seed))
    mask = keep_row_blocks({"w": score}, {"w": density}, rows).mask("w", 0)
    blocks = -(-out // rows)
    blocks_kept = torch.stack([mask[i * rows : (i + 1) * rows].flatten(2).all(-1).all(0)
                         for i in range(blocks)])  # fmt: skip
    some = torch.stack([mask[i * rows : (i + 1) * rows].flatten(2).any(-1).any(0)
                        for i in range(blocks)])  # fmt: skip
    assert torch.equal(blocks_kept, some)
    assert int(blocks_kept.sum()) == round(density * blocks * ins)
    flat = score[..., 0, 0]
    ours, plain = keep_row_blocks({"w": flat}, {"w": density}, 1), keep_shares(
        {"w": flat}, {"w": density}
    )  # fmt: skip
    assert torch.equal(ours.mask("w", 0), plain.mask("w", 0))


def test_a_training_prunes_by_blocks_and_keeps_zeros() -> None:
    net = random_net()
    rows = TensorDataset(torch.randn(16, 3, 16, 16), torch.randint(4, (16,)))
    intarsia.apply(net, SparseByteNn(density=0.5, rows=4))
    intarsia.fit(net, rows, epochs=4, batch_size=8, lr=1e-3, trackers=())
    weight = net.get_parameter("expand.1.weight").detach()[..., 0, 0]
    mask = weight[:4] != 0
    assert bool((mask.all(0) == mask.any(0)).all())
    blocks = torch.stack([(weight[i : i + 4] != 0).any(0) for i in (0, 4, 8, 12)])
    assert int(blocks.sum()) == round(0.5 * blocks.numel())
    assert bool((net.get_parameter("stem.weight") != 0).all())
    with torch.no_grad():
        fast = intarsia.compress(net.eval(), intarsia.sparse.Chw(rows=4), picture()[:1], force=True)
        assert_close(fast(picture()[:1]), net(picture()[:1]), atol=1e-4, rtol=1e-4)


def test_a_given_schedule_prunes_the_planned_layers_by_blocks_unless_it_names_layers() -> None:
    method = SparseByteNn(density=0.5, rows=2)
    plan = method.plan(random_net())
    layers = tuple(plan.decided["layers"])
    schedule = method.scheduled(plan, Gradual(0.25))
    assert layers and (schedule.density, schedule.rows, schedule.layers) == (0.25, 2, layers)
    with_layers = Gradual(0.25, layers=layers[:1])
    assert method.scheduled(plan, with_layers) is with_layers


def test_gradual_refuses_what_blocks_cannot_have() -> None:
    with refused(ConfigError, what="spread", got="'global'"):
        Gradual(0.5, rows=4, spread="global")
    with refused(ConfigError, what="rows", got=0):
        Gradual(0.5, rows=0)


class Shared(nn.Module):
    """A net of which a subclass has one thing too many."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm = nn.LayerNorm(4)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "twice": (lambda n, x: n.a(n.a(n.stem(x))), "'a'"),
    "joined": (lambda n, x: torch.cat([n.a(n.stem(x)), n.b(n.stem(x))], 1), "cat|'stem'"),
    "norm": (lambda n, x: n.norm(n.a(n.stem(x))), "LayerNorm"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_known_is_refused_by_name(case: str) -> None:
    forward, name = CASES[case]
    net = type("Odd", (Shared,), {"forward": forward})()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(TargetError, match=name):
        intarsia.apply(net, SparseByteNn())
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_two_layers_of_one_weight_are_refused_and_groups_keep_their_order() -> None:
    forward: Callable[[Any, Tensor], Tensor] = lambda n, x: n.b(n.grouped(n.a(n.stem(x))))  # noqa: E731
    net = type("Grouped", (Shared,), {"forward": forward})()
    channels = channels_of(net)
    fixed = {path: g.fixed for g in channels.groups for path in (*g.makes, *g.reads)}
    assert "2 groups" in fixed["a"]
    assert "2 groups" in fixed["b"] or fixed["b"] == "the net's output"
    net.b.weight = net.a.weight
    with refused(TargetError, what="order of channels", got="a weight of 'b' that 'a' uses, too"):
        channels_of(net)
    for wrong in ({"density": 0.0}, {"rows": 0}, {"rounds": -1}):
        with pytest.raises(ConfigError):
            SparseByteNn(**wrong)


def test_blocks_by_hand() -> None:
    """The blocks of the largest L1 norm stay: two rows together at each input.

    W = ((1, -3, 0), (2, 1, -1)): the norms of the three blocks are 3, 4 and 1. One of three stays,
    the second column.
    """
    weight = torch.tensor([[1.0, -3.0, 0.0], [2.0, 1.0, -1.0]])
    mask = keep_row_blocks({"": weight.abs()}, {"": 1 / 3}, rows=2).mask("", 0)
    assert mask.tolist() == [[False, True, False]] * 2
