"""SplitLinear equals its naive twin, and its merge and variance equal enumeration."""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.core import Partition
from intarsia.core.errors import ConfigError, ShapeError
from intarsia.mixtures import SplitLinear
from intarsia.mixtures.split import DECAYS, SCALINGS, split_linear_naive
from intarsia.partitions import random_disjoint
from intarsia.partitions.disjoint import UNITS

from ..refusals import refused


def layer_of(
    experts: int = 4,
    active: int = 1,
    scaling: str = "inverted",
    decay: str = "owned",
    shape: tuple[int, int] = (5, 3),
    *,
    unit: str = "element",
    zero_start: bool = False,
    bias: bool = True,
    seed: int = 0,
) -> SplitLinear:
    """A layer in float64 that has been trained: V is not W0, biases differ, starts have shrunk."""
    generator = torch.Generator().manual_seed(seed)
    base = nn.Linear(shape[1], shape[0], bias=bias, dtype=torch.float64)
    for parameter in base.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    partition = random_disjoint({"weight": shape}, experts, generator=generator, unit=unit)
    layer = SplitLinear(
        base, partition, active=active, scaling=scaling, decay=decay, zero_start=zero_start
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if layer.rho is not None:
            layer.rho.copy_(0.5 + torch.rand(experts, generator=generator) / 2)
    return layer.double()


def subsets(layer: SplitLinear) -> list[Tensor]:
    """The gates (1, N) of every k-subset."""
    eye = torch.eye(layer.experts, dtype=torch.float64)
    return [
        eye[list(s)].sum(0, keepdim=True) for s in combinations(range(layer.experts), layer.active)
    ]


def draw(layer: SplitLinear, groups: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    index = torch.rand(groups, layer.experts, generator=generator).topk(layer.active).indices
    return torch.zeros(groups, layer.experts, dtype=torch.float64).scatter_(1, index, 1.0)


@st.composite
def layers(draw: st.DrawFn) -> SplitLinear:
    experts = draw(st.sampled_from([1, 2, 3, 4, 7, 20]))  # 20: more than some weights
    scaling, decay = draw(st.sampled_from(SCALINGS)), draw(st.sampled_from(DECAYS))
    active = draw(st.integers(1, min(experts, 4)))
    if decay == "official":
        scaling, active = "paper", 1
    return layer_of(
        experts,
        active,
        scaling,
        decay,
        (draw(st.integers(1, 5)), draw(st.integers(1, 5))),
        unit=draw(st.sampled_from(UNITS)),
        zero_start=draw(st.booleans()),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )


@settings(max_examples=150)
@given(
    layers(),
    st.sampled_from([(6, 1), (6, 2), (6, 3), (6, 6), (1, 1), (7, 7)]),
    st.sampled_from([(), (1,), (3,), (2, 2)]),
    st.integers(0, 2**31),
)
def test_the_fast_form_equals_the_naive_one_in_outputs_and_gradients(
    layer: SplitLinear, sizes: tuple[int, int], between: tuple[int, ...], seed: int
) -> None:
    rows, groups = sizes
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, *between, layer.in_features)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    gates = draw(layer, groups, seed)
    inputs = [x, *layer.parameters()]
    fast, naive = layer(x, gates), split_linear_naive(layer, x, gates)
    assert_close(fast, naive)
    cotangent = torch.randn(fast.shape, generator=generator, dtype=torch.float64)
    assert_close(
        torch.autograd.grad(fast, inputs, cotangent), torch.autograd.grad(naive, inputs, cotangent)
    )


@settings(max_examples=100)
@given(layers(), st.integers(0, 2**31))
def test_the_merge_and_the_variance_equal_enumeration(layer: SplitLinear, seed: int) -> None:
    if len(subsets(layer)) > 150:
        return
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 2, layer.in_features, generator=generator, dtype=torch.float64)
    outputs = torch.stack([split_linear_naive(layer, x, gates) for gates in subsets(layer)])
    mean = outputs.mean(0)
    assert_close(layer(x), mean)
    assert_close(layer.merged()(x), mean)
    enumerated = (outputs - mean).square().sum(-1).mean(0)
    assert_close(layer.variance(x), enumerated)
    scale = torch.rand(layer.out_features, generator=generator, dtype=torch.float64)
    scaled = ((outputs - mean) * scale).square().sum(-1).mean(0)
    assert_close(layer.variance(x, scale), scaled)
    if layer.experts > 1:
        gradients = (
            torch.autograd.grad(v.sum(), list(layer.parameters()), allow_unused=True)
            for v in (layer.variance(x), enumerated)
        )
        assert_close(*map(list, gradients))


@pytest.mark.parametrize("decay", ["owned", "delta"])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("experts", [1, 4])
def test_all_experts_together_are_the_plain_layer(experts: int, scaling: str, decay: str) -> None:
    layer = layer_of(experts, experts, scaling, decay)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    plain = layer.merged()
    assert layer.start is not None
    whole = layer.start + layer.change()
    assert_close(plain.weight, whole)
    for groups in (1, 4):
        assert_close(layer(x, draw(layer, groups)), plain(x))
    assert_close(layer.variance(x), torch.zeros(4, 2, dtype=torch.float64))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("zero_start", [True, False])
def test_before_training_every_expert_is_the_base(
    scaling: str, decay: str, zero_start: bool
) -> None:
    if decay == "official" and scaling != "paper":
        return
    generator = torch.Generator().manual_seed(0)
    base = nn.Linear(3, 5)
    if zero_start:
        nn.init.zeros_(base.weight)
    partition = random_disjoint({"weight": (5, 3)}, 4, generator=generator)
    layer = SplitLinear(
        copy.deepcopy(base), partition, scaling=scaling, decay=decay, zero_start=zero_start
    )
    x = torch.randn(4, 3)
    for gates in torch.eye(4):
        assert_close(layer(x, gates[None]), base(x))
    assert_close(layer(x), base(x))


def test_published_merge_is_the_mean_of_the_experts() -> None:
    layer = layer_of(4, 1, "paper", "official")
    assert layer.biases is not None
    experts = layer.expert_weight(torch.eye(4, dtype=torch.float64))
    assert_close(layer.merged().weight, experts.mean(0))
    assert_close(layer.merged().bias, layer.biases.mean(0))


def test_published_joint_merge_is_the_mean_for_a_zero_start() -> None:
    layer = layer_of(4, 1, "paper", zero_start=True)
    experts = layer.expert_weight(torch.eye(4, dtype=torch.float64))
    joint = experts.gather(0, layer.owner.long()[None])[0] / 4
    assert_close(layer.merged().weight, joint)


def test_an_inverted_merge_is_the_tensor_itself_for_any_k() -> None:
    for active in range(1, 50):
        layer = layer_of(49, active, zero_start=True)
        assert torch.equal(layer.merged().weight, layer.weight)


def test_both_ways_to_build_weights_agree() -> None:
    for decay in ("owned", "delta", "official"):
        layer = layer_of(4, 1, "paper", decay)
        gates = draw(layer, 6)
        many = layer.expert_weight(gates)  # N <= G
        few = torch.cat([layer.expert_weight(g[None]) for g in gates])  # N > G
        assert_close(many, few)


def test_a_not_finite_weight_stays_with_its_owner() -> None:
    layer = layer_of(4, zero_start=True)
    layer.weight.data[0, 0] = float("inf")
    other = [i for i in range(4) if i != int(layer.owner[0, 0])]
    parts = layer.parts()
    assert parts[other].isfinite().all()


def test_seen_are_the_experts_that_had_a_gradient() -> None:
    layer = layer_of(4)
    x = torch.randn(2, 3, dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)
    y = layer(x, eye[1:2])
    layer(x, eye[2:3])  # no loss
    with torch.no_grad():
        layer(x, eye[3:4])
    layer(x)
    assert layer.seen.tolist() == [False] * 4
    y.sum().backward()
    assert layer.seen.tolist() == [False, True, False, False]
    layer(x, eye[[0, 1]]).sum().backward()
    assert layer.seen.tolist() == [True, True, False, False]
    assert copy.deepcopy(layer).seen.tolist() == [True, True, False, False]
    layer.forget()
    assert layer.seen.tolist() == [False] * 4


def test_state_is_the_weight_its_owners_and_its_start() -> None:
    layer = layer_of(4, 1, "paper", "official")
    x, gates = torch.randn(4, 3, dtype=torch.float64), draw(layer, 4)
    layer(x, gates).sum().backward()
    assert sorted(layer.state_dict()) == ["biases", "owner", "rho", "start", "weight"]
    assert layer.owner.dtype == torch.int8
    other = layer_of(4, 1, "paper", "official", seed=1)
    assert not torch.equal(other(x, gates), layer(x, gates))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x, gates), layer(x, gates))
    assert sorted(layer_of(zero_start=True, bias=False).state_dict()) == ["owner", "weight"]


def test_autocast_reaches_every_path() -> None:
    layer = layer_of(4).float()
    for groups in (1, 2, 4):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(torch.randn(4, 2, 3), draw(layer, groups))
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_an_empty_batch_gives_an_empty_output() -> None:
    layer = layer_of()
    assert layer(torch.zeros(0, 2, 3).double(), torch.zeros(0, 4).double()).shape == (0, 2, 5)


@pytest.mark.parametrize("shape", [(2, 3), (5, 4), (0, 4), (2,), (2, 4, 1)])
def test_gates_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with refused(ShapeError, what="gates", want="(G, 4) with G a divisor of the rows"):
        layer_of()(torch.zeros(6, 3).double(), torch.zeros(shape).double())


def split(label: Tensor, parts: int, **settings: object) -> SplitLinear:
    return SplitLinear(nn.Linear(3, 5), Partition({"weight": label}, parts), **settings)  # pyright: ignore


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"scaling": "none"}, "'none'"),
        ({"decay": "l2"}, "'l2'"),
        ({"active": 0}, "0"),
        ({"active": 3}, "3"),
        ({"decay": "official"}, "scaling='inverted', active=1"),
        ({"decay": "official", "scaling": "paper", "active": 2}, "scaling='paper', active=2"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], got: str) -> None:
    with refused(ConfigError, got=got):
        split(torch.zeros(5, 3, dtype=torch.int8), 2, **settings)


def test_a_partition_must_fit_and_cover() -> None:
    with refused(ShapeError, what="partition of 'weight'", got=(3, 5)):
        split(torch.zeros(3, 5, dtype=torch.int8), 2)
    with refused(ShapeError, what="partition of 'weight'", got=None):
        SplitLinear(nn.Linear(3, 5), Partition({"w": torch.zeros(5, 3, dtype=torch.int8)}, 2))
    with refused(ConfigError, what="partition"):
        split(torch.full((5, 3), -1), 2)
