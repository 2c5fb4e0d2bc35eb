"""MoSA over every cell: starts as its adapter, trains parts, evaluates the exact merge."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.adapters import Bottleneck, BottleneckCell, Lora, LoraCell
from intarsia.adapters.bottleneck import PLACEMENTS
from intarsia.core import Site
from intarsia.core.errors import ConfigError
from intarsia.gating import passes
from intarsia.methods import Mosa, MosaCell, Mosl
from intarsia.mixtures import SplitLinear
from intarsia.partitions.disjoint import UNITS
from intarsia.routers import RandomRouter

from ..refusals import refused

WIDTH = 6
NORM = (torch.linspace(0.5, 2, WIDTH), torch.linspace(-1, 1, WIDTH))


def build(config: Mosa | Bottleneck | Lora, seed: int = 0) -> Any:
    site = Site("b", WIDTH, WIDTH, config.position, norm=NORM)
    return config.build(site, generator=torch.Generator().manual_seed(seed)).double()


def mosa(**settings: Any) -> Mosa:
    return Mosa(Bottleneck(4, activation="gelu"), **settings)


def trained(config: Mosa, seed: int = 0) -> MosaCell:
    cell = build(config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in cell.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return cell


@st.composite
def configs(draw: st.DrawFn) -> Mosa:
    experts = draw(st.sampled_from([1, 2, 4, 50]))
    over: Bottleneck | Lora = Lora(draw(st.integers(1, 4)))
    if draw(st.booleans()):
        norm = draw(st.sampled_from(["none", "layer", "residual"]))
        over = Bottleneck(3, draw(st.sampled_from(sorted(PLACEMENTS))), norm=norm)
    forms = [("paper", "official"), ("paper", "owned"), ("inverted", "delta")]
    scaling, decay = draw(st.sampled_from(forms))
    active = 1 if decay == "official" else draw(st.integers(1, min(3, experts)))
    return Mosa(
        over,
        experts,
        active,
        draw(st.sampled_from(["up", "down", "both"])),
        draw(st.sampled_from(["sample", "batch"])),
        scaling,
        decay,
        draw(st.sampled_from(UNITS)),
    )


@given(configs(), st.integers(0, 2**31))
def test_a_new_cell_is_its_adapter_with_the_same_start(config: Mosa, seed: int) -> None:
    cell, plain = build(config, seed), build(config.over, seed)
    x = torch.randn(3, 2, WIDTH, dtype=torch.float64)
    expected = plain(x)
    assert_close(cell.eval()(x), expected)
    assert_close(cell.train()(x), expected)  # every expert starts as the whole adapter
    assert_close(cell.merged()(x), expected)


@given(configs(), st.integers(0, 1000))
def test_the_merged_cell_is_plain_and_equals_evaluation(config: Mosa, seed: int) -> None:
    cell = trained(config, seed)
    x = torch.randn(3, 2, WIDTH, dtype=torch.float64)
    merged = cell.merged()
    assert type(merged) is type(build(config.over))
    assert {n: p.shape for n, p in merged.named_parameters()} == {
        n: p.shape for n, p in build(config.over).named_parameters()
    }
    assert_close(merged(x), cell.eval()(x))
    assert isinstance(cell.body.down, SplitLinear) == (config.split != "up")  # not merged in place
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    assert not torch.equal(merged(x), cell(x))  # a copy, not a view


@given(configs())
def test_training_stores_one_tensor_for_each_side(config: Mosa) -> None:
    cell, plain = build(config), build(config.over)
    weights = {n: p.shape for n, p in cell.named_parameters() if n.endswith("weight")}
    assert {n.removeprefix("body."): s for n, s in weights.items()} == {
        n: p.shape for n, p in plain.named_parameters() if n.endswith("weight")
    }


@pytest.mark.parametrize("draw", ["sample", "batch"])
@pytest.mark.parametrize("split", ["up", "down", "both"])
def test_a_training_forward_is_the_cell_with_the_drawn_experts(split: str, draw: str) -> None:
    cell = trained(mosa(split=split, draw=draw, active=2))
    draws = copy.deepcopy(cell.routers)
    x = torch.randn(5, 3, WIDTH, dtype=torch.float64)
    with passes(cell, 1):
        y = cell(x)
    body = cast(BottleneckCell, cell.body)
    for row in range(5):
        linear: dict[str, Any] = {"down": body.down, "up": body.up}
        for side, router in draws.items():
            gates = copy.deepcopy(router)(x).dense()[row : row + 1]
            assert int(gates.sum()) == 2
            layer, one = linear[side], gates
            linear[side] = lambda z, layer=layer, one=one: layer(z, one)
        assert_close(y[row : row + 1], body.compute(x[row : row + 1], **linear))


def test_the_mean_over_draws_is_the_merge_where_the_up_side_is_split() -> None:
    """E[W_B z + b_B] is exact for a split up-projection: DropConnect's weight scaling."""
    cell = trained(mosa(split="up", active=2))
    x = torch.randn(1, 3, WIDTH, dtype=torch.float64)
    count = 4000
    with torch.no_grad():
        y = cell.train()(x.expand(count, -1, -1))
        expected = cell.eval()(x)[0]
    error = y.std(0) / count**0.5
    assert ((y.mean(0) - expected).abs() < 5 * error).all()


def test_draws_of_the_two_sides_are_apart() -> None:
    cell = build(mosa(split="both"))
    x = torch.empty(64, 1)
    down, up = (cast(RandomRouter, cell.routers[side])(x).dense() for side in ("down", "up"))
    assert not torch.equal(down, up)


def test_stacked_passes_are_two_passes() -> None:
    for draw in ("sample", "batch"):
        cell = trained(mosa(split="both", draw=draw))
        again = copy.deepcopy(cell)
        x = torch.randn(4, 3, WIDTH, dtype=torch.float64)
        with passes(cell, 2):
            stacked = cell(torch.cat([x, x]))
        assert_close(stacked, torch.cat([again(x), again(x)]))
        assert not torch.allclose(stacked[:4], stacked[4:])


def test_a_copy_draws_the_same_but_apart() -> None:
    cell = trained(mosa(split="both"))
    again = copy.deepcopy(cell)
    x = torch.randn(8, 3, WIDTH, dtype=torch.float64)
    outputs = [cell(x) for _ in range(3)]
    for y in outputs:
        assert torch.equal(again(x), y)
    assert not torch.equal(outputs[0], outputs[1])


def test_evaluation_draws_nothing() -> None:
    cell = trained(mosa(split="both"))
    again = copy.deepcopy(cell)
    x = torch.randn(8, 3, WIDTH, dtype=torch.float64)
    cell.eval()(x)
    cell.merged()
    assert torch.equal(cell.train()(x), again(x))


def test_building_and_merging_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    build(mosa(split="both")).merged()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_cell_computes_the_same_when_loaded() -> None:
    cell, other = trained(mosa(split="both")), build(mosa(split="both"), seed=7)
    x = torch.randn(8, 3, WIDTH, dtype=torch.float64)
    other.load_state_dict(cell.state_dict())
    assert_close(other.eval()(x), cell.eval()(x))
    assert "body.up.owner" in cell.state_dict()


def test_one_expert_is_the_plain_adapter() -> None:
    plain, cell = build(Bottleneck(4, activation="gelu")), build(mosa(experts=1))
    nn.init.ones_(plain.up.weight)
    nn.init.ones_(cell.body.up.weight)
    x = torch.randn(4, 3, WIDTH, dtype=torch.float64)
    a, b = plain(x), cell(x)
    assert_close(a, b)
    left, right = (
        torch.autograd.grad(y.square().sum(), weight)
        for y, weight in ((a, plain.up.weight), (b, cell.body.up.weight))
    )
    assert_close(left, right)


@given(st.integers(0, 1000), st.sampled_from(["paper", "inverted"]))
def test_mosl_merges_to_the_product_of_its_merged_sides(seed: int, scaling: str) -> None:
    cell = trained(Mosl(3, scaling=scaling, draw="batch"), seed)
    a, b = cast(SplitLinear, cell.body.down), cast(SplitLinear, cell.body.up)
    delta = cell.delta()
    assert delta is not None
    expected = b.merged_weight() @ a.merged_weight()
    assert_close(delta, expected)
    x = torch.randn(3, 2, WIDTH, dtype=torch.float64)
    assert_close(cell.eval()(x), x @ delta.T)
    # independent draws of two linear maps: the expectation factorises
    eye = torch.eye(4, dtype=torch.float64)
    pairs = b.expert_weight(eye)[:, None] @ a.expert_weight(eye)[None]  # (4, 4, out, in)
    assert_close(pairs.mean((0, 1)), expected)
    assert isinstance(cell.merged(), LoraCell)


def test_mosl_is_mosa_over_lora() -> None:
    config = Mosl(5, experts=3)
    assert config == Mosa(Lora(5), experts=3, split="both")
    assert config.roles == Lora(5).roles
    assert build(mosa()).delta() is None


def test_every_expert_has_its_own_bias() -> None:
    cell = build(mosa(split="both"))
    assert cell.body.up.biases.shape == (4, WIDTH)
    assert cell.body.down.biases.shape == (4, 4)
    assert build(Mosl()).body.up.biases is None


def test_layers_and_sides_are_dealt_apart() -> None:
    config = Mosa(Bottleneck(WIDTH, activation="gelu"), split="both")
    generator = torch.Generator().manual_seed(0)
    cells = [
        config.build(Site("b", WIDTH, WIDTH, norm=NORM), generator=generator) for _ in range(2)
    ]
    owners = [cast(Tensor, getattr(c.body, side).owner) for c in cells for side in ("down", "up")]
    assert all(not torch.equal(owners[0], other) for other in owners[1:])


def test_the_paper_forbids_another_k() -> None:
    paper, inverted = build(mosa(scaling="paper")), build(mosa())
    assert [cast(RandomRouter, c.routers["up"]).fixed for c in (paper, inverted)] == [True, False]


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"experts": 0}, "0"),
        ({"experts": -3}, "-3"),
        ({"active": 0}, "0"),
        ({"active": 5}, "5"),
        ({"split": "none"}, "'none'"),
        ({"draw": "token"}, "'token'"),
        ({"scaling": "sum"}, "'sum'"),
        ({"decay": "l2"}, "'l2'"),
        ({"unit": "block"}, "'block'"),
        ({"decay": "official"}, "scaling='inverted', active=1"),
        ({"over": Mosa()}, "Mosa"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], got: str) -> None:
    with refused(ConfigError, got=got):
        Mosa(**settings)
