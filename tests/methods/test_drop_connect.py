"""DropConnect: for each sample other weights, and at p=0, or in evaluation, the adapter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from intarsia.adapters import Bottleneck, Lora
from intarsia.core import Site
from intarsia.core.errors import ConfigError
from intarsia.methods import DropConnect

from ..refusals import refused

OVERS = [
    Bottleneck(3, activation="gelu", norm="none"),
    Bottleneck(3, activation="gelu", norm="residual"),
    Lora(2),
    Lora(2, roles=("qv",)),
]


def build(config: Any) -> Any:
    gain = torch.linspace(0.5, 1.5, 6)
    site = Site("b.qkv", 6, 9, config.position, norm=(gain, gain - 1))
    cell = config.build(site, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return cell.double()


def one_by_one(cell: Any, x: Tensor, sample_masks: Tensor) -> Tensor:
    """Run each sample through a cell whose weights were dropped by hand."""
    body, outputs = cell.body, []
    sides = {"down": body.down, "up": body.up}
    for row, mask in zip(x, sample_masks, strict=True):
        layer = sides[cell.side]
        weight = layer.weight * mask / (1 - cell.p)
        dropped = {cell.side: lambda v, w=weight, b=layer.bias: F.linear(v, w, b)}
        outputs.append(body.compute(row[None], **(sides | dropped))[0])
    return torch.stack(outputs)


@pytest.mark.parametrize("over", OVERS, ids=["plain", "normed", "lora", "qv"])
@pytest.mark.parametrize("side", ["up", "down"])
@pytest.mark.parametrize("lead", [(1, 4), (3,), (5, 2, 2)])
def test_each_sample_is_computed_with_its_own_weights(over: Any, side: str, lead: Any) -> None:
    cell = build(DropConnect(over, p=0.25, side=side)).train()
    x = torch.randn(*lead, 6, dtype=torch.float64)
    mask = torch.rand(lead[0], *getattr(cell.body, side).weight.shape) >= 0.25
    cell.noise.drawn = lambda *_: mask
    got, want = cell(x), one_by_one(cell, x, mask)
    assert_close(got, want)
    parameters = [*cell.parameters()]
    gradients = [torch.autograd.grad(y.square().sum(), parameters) for y in (got, want)]
    for ours, by_hand in zip(*gradients, strict=True):
        assert_close(ours, by_hand)


@pytest.mark.parametrize("over", OVERS, ids=["plain", "normed", "lora", "qv"])
def test_without_dropping_and_in_evaluation_it_is_the_adapter_bit_for_bit(over: Any) -> None:
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    plain, half, none = (build(c) for c in (over, DropConnect(over), DropConnect(over, p=0)))
    assert torch.equal(none.train()(x), plain(x)) and torch.equal(half.eval()(x), plain(x))
    assert torch.equal(half.merged()(x), plain(x)) and type(half.merged()) is type(plain)
    assert not torch.equal(half.train()(x), plain(x))


def test_a_share_p_is_dropped_and_the_mean_over_draws_is_the_adapter() -> None:
    cell = build(DropConnect(OVERS[0], p=0.25)).train()
    x = torch.randn(1, 6, dtype=torch.float64).expand(8000, 6)
    y, want = cell(x), cell.body(x[:1])[0]
    error = y.std(0) / len(y) ** 0.5
    assert ((y.mean(0) - want).abs() < 5 * error).all()
    assert len(y[:, 0].unique()) > 1


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"p": 1.0}, "p"),
        ({"side": "both"}, "side"),
        ({"over": DropConnect()}, "over"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        DropConnect(**settings)
