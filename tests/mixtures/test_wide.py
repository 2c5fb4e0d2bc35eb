"""A mixture is a wide MLP: values and gradients; and how many of its units are on."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import intarsia
from intarsia import TopK
from intarsia.core import Routing
from intarsia.core.errors import ConfigError
from intarsia.mixtures import Capacity, Mixture, StackedExperts
from intarsia.routers import MoeX, TopP

from ..refusals import refused

D, H, OUT = 6, 9, 4
ROUTERS = {
    "sparsity": MoeX(experts=4), "topk": TopK(experts=4), "topp": TopP(experts=4, p=0.5),
    "one": MoeX(experts=1, active=1),
}  # fmt: skip


def mixture(name: str = "sparsity", shared: bool = False, **settings: Any) -> Mixture:
    draw, config = torch.Generator().manual_seed(0), ROUTERS[name]
    experts = StackedExperts(
        config.experts, D, H, OUT, **({"act": "relu"} | settings), generator=draw
    )
    made = Mixture(experts, config.build(D, generator=draw), nn.Linear(D, OUT) if shared else None)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=draw)
    return made.double()


def batch(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(*shape, D, dtype=torch.float64, generator=draw)


def laid_out(experts: StackedExperts) -> dict[str, Tensor]:
    """The gradients of stacked experts, where the wide MLP has them."""
    grads = {n: p.grad for n, p in experts.named_parameters()}
    found: dict[str, Tensor] = {}
    for name, grad in grads.items():
        assert grad is not None
        if name == "down":
            found["down.weight"] = grad.transpose(0, 1).flatten(1)
        elif name == "down_bias":
            found[name] = grad
        else:
            of, _, bias = name.partition("_")
            found[f"{of}.{bias or 'weight'}"] = grad.flatten(0, 1)
    return found


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("shape", [(0,), (1,), (13,), (2, 5)])
@pytest.mark.parametrize(("gated", "bias", "shared"), [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0)])
def test_it_is_the_mixture_in_values_and_gradients(
    name: str, shape: tuple[int, ...], gated: int, bias: int, shared: int
) -> None:
    layer = mixture(name, bool(shared), gated=bool(gated), bias=bool(bias))
    wide, x = intarsia.mixtures.as_wide_mlp(layer), batch(*shape)
    assert_close(wide(x, layer.routing(x).dense()), layer(x))
    found: list[tuple[Tensor, ...]] = []
    for side in (wide, layer):
        side.zero_grad()
        gates = layer.routing(x).dense().detach().requires_grad_()
        given = x.clone().requires_grad_()
        if side is layer:
            y = layer.experts.mix(given.reshape(-1, D), Routing.from_dense(gates)).view(*shape, OUT)
            y = y if layer.shared is None else y + layer.shared(given)
        else:
            y = side(given, gates)
        (y * y.detach().cos()).sum().backward()
        assert gates.grad is not None and given.grad is not None
        found.append((y, given.grad, gates.grad * (gates.detach() != 0)))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs)
    assert isinstance(layer.experts, StackedExperts)
    wanted = laid_out(layer.experts)
    grads = {n: p.grad for n, p in wide.named_parameters() if not n.startswith("shared")}
    assert grads.keys() == wanted.keys()
    for key, grad in grads.items():
        assert grad is not None
        assert_close(grad, wanted[key])


def test_it_is_a_plain_copy() -> None:
    layer = mixture(bias=True)
    wide, before = intarsia.mixtures.as_wide_mlp(layer.eval()), copy.deepcopy(layer)
    assert not wide.training and {type(m) for m in wide.children()} == {nn.Linear, nn.ReLU}
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.zero_()
    assert_close(layer(batch(5)), before(batch(5)))
    frozen = {id(p) for p in layer.parameters()}
    assert not frozen & {id(p) for p in wide.parameters()}


def test_experts_a_token_does_not_have_are_off() -> None:
    layer, x = mixture(bias=True), batch(13)
    gates = layer.routing(x).dense()
    units = intarsia.mixtures.as_wide_mlp(layer).hidden(x, gates).view(13, 4, H)
    assert torch.equal((units != 0).any(2) | (gates != 0), gates != 0)
    assert bool((units[gates != 0] != 0).any())


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", ["sparsity", "topp", "one"])
def test_l0_counts_the_units_of_the_wide_mlp(name: str, gated: bool) -> None:
    layer, x = mixture(name, gated=gated, bias=True), batch(2, 9)
    gates = layer.routing(x).dense()
    units = intarsia.mixtures.as_wide_mlp(layer).hidden(x, gates) != 0
    on = intarsia.mixtures.activation_l0(layer, x)[""]
    assert on.wide == pytest.approx(float(units.sum() / 18))
    assert on.expert == pytest.approx(float(units.sum() / (gates != 0).sum()))
    assert not any(m._forward_pre_hooks for m in layer.modules())


def test_l0_does_not_count_padding_and_dropped_tokens() -> None:
    layer, x = mixture(), batch(2, 9)
    valid = torch.arange(9).expand(2, 9) < torch.tensor([[4], [9]])
    alone = intarsia.mixtures.activation_l0(layer, x[valid])[""]
    layer.router.context.valid = valid  # pyright: ignore[reportAttributeAccessIssue]
    assert intarsia.mixtures.activation_l0(layer, x)[""] == pytest.approx(alone)
    layer.router.context.valid = torch.zeros(2, 9, dtype=torch.bool)  # pyright: ignore
    assert math.isnan(intarsia.mixtures.activation_l0(layer, x)[""].wide)
    layer = mixture("topk")
    layer.capacity = Capacity(0.25, least=1)
    gates = layer.routing(x).dense()
    units = intarsia.mixtures.as_wide_mlp(layer).hidden(x, gates) != 0
    have = int((gates != 0).any(1).sum())
    assert have < 18
    on = intarsia.mixtures.activation_l0(layer, x)[""]
    assert on.wide == pytest.approx(float(units.sum() / have))


def test_l0_does_not_count_an_expert_of_weight_0() -> None:
    layer, x = mixture("topk"), batch(9)
    with torch.no_grad():
        for parameter in layer.router.parameters():
            parameter.mul_(1e6)
    assert bool((layer.routing(x).weight == 0).any())
    on = intarsia.mixtures.activation_l0(layer, x)[""]
    assert on.expert == on.wide


def test_l0_of_a_model_is_by_path_and_of_gelu_all_units() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 32, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
    vit = timm.create_model("vit_tiny_patch16_224", depth=3, **sizes).eval()
    intarsia.upcycle(vit, TopK(experts=4), layers=[0, 2])
    images = torch.randn(2, 3, 32, 32)
    found = intarsia.mixtures.activation_l0(vit, images)
    assert list(found) == ["blocks.0.mlp", "blocks.2.mlp"]
    assert found["blocks.2.mlp"].expert == pytest.approx(128, rel=0.01)
    assert found["blocks.2.mlp"].wide == pytest.approx(2 * 128, rel=0.01)


def test_what_is_no_wide_mlp_is_refused() -> None:
    draw = torch.Generator().manual_seed(0)
    layer = Mixture([nn.Linear(D, D)], TopK(experts=1, active=1).build(D, generator=draw))
    with refused(ConfigError, what="experts", got="ExpertList"):
        intarsia.mixtures.as_wide_mlp(layer)
    with refused(ConfigError, what="model", got="a Mixture without a mixture of stacked experts"):
        intarsia.mixtures.activation_l0(layer, batch(2).float())
