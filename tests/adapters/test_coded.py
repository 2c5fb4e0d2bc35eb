"""A coded cell equals its body with rounded weight matrices, for any body."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from intarsia.adapters import Bottleneck, CodedCell, CodedLinear, Lora, Ssf
from intarsia.adapters.coded import stored
from intarsia.core import Site
from intarsia.core.errors import ConfigError
from intarsia.formats import Gaussian
from intarsia.methods import Adamix, Mosa

from ..refusals import refused

BODIES = {
    "bottleneck": Bottleneck(5, norm="none"),
    "residual norm": Bottleneck(5),
    "dropout": Bottleneck(5, norm="none", dropout=0.3),
    "scale": Bottleneck(5, norm="layer", scale="channel"),
    "lora": Lora(3),
    "mosa": Mosa(Bottleneck(5, norm="none")),
    "mosl": Mosa(Lora(3), split="both"),
    "adamix": Adamix(Bottleneck(5, norm="none")),
}


def body(config: Any, seed: int = 0) -> Any:
    weight = torch.linspace(0.5, 1.5, 6)
    site = Site("b", 6, 9, config.position, norm=(weight, weight.flip(0)))
    return config.build(site, generator=torch.Generator().manual_seed(seed))


def coded(config: Any, bits: int | None = 2, **options: Any) -> CodedCell:
    form = None if bits is None else Gaussian(bits)
    return CodedCell(body(config), form, generator=torch.Generator().manual_seed(1), **options)


@pytest.mark.parametrize("config", BODIES.values(), ids=list(BODIES))
@pytest.mark.parametrize("biases", [False, True])
def test_it_computes_with_rounded_matrices(config: Any, biases: bool) -> None:
    cell, x = coded(config, biases=biases).eval(), torch.randn(3, 4, 6)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
            assert biases or not name.endswith((".bias", ".biases")) or "norm" in name
    plain = body(config).eval()  # the naive twin: a float cell into which rounded weights are put
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            own = dict(cell.body.named_parameters()).get(name)
            if own is None:
                parameter.zero_()
            else:
                is_matrix = parameter.dim() > 1 and "bias" not in name
                parameter.copy_(Gaussian(2).quantise(own) if is_matrix else own)
    assert_close(cell(x), plain(x))
    assert_close(cell.merged()(x), plain(x))
    cell.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in cell.parameters())


def test_delta_is_computed_from_rounded_weights() -> None:
    cell, x = coded(Lora(3)), torch.randn(2, 6)
    delta = cell.delta()
    assert delta is not None
    assert_close(x @ delta.T, cell(x))
    up, down = (Gaussian(2).quantise(getattr(cell.body, s).weight) for s in ("up", "down"))
    assert_close(delta, up @ down)


def test_without_a_format_it_is_the_float_cell() -> None:
    for config in (Bottleneck(5, norm="none"), Lora(3)):
        cell, plain = coded(config, None, biases=True), body(config)
        x = torch.randn(3, 6)
        assert [n for n, _ in cell.body.named_parameters()] == [
            n for n, _ in plain.named_parameters()
        ]
        for _ in range(2):  # as it starts, and after a step
            assert torch.equal(cell(x), plain(x))
            for module in (cell, plain):
                module(x).sum().backward()
                torch.optim.SGD(module.parameters(), 0.1).step()


def test_constant_weights_are_initialised_with_a_spread() -> None:
    cell = coded(Lora(8), start=1e-3)
    weight = cell.body.up.weight
    assert 5e-4 < weight.std() < 1.5e-3 and weight.abs().max() <= 2e-3
    assert not coded(Lora(8), None).body.up.weight.any()
    rounded = cell.weights()["up.weight"]
    assert rounded.isfinite().all() and len(rounded.unique()) == 4


def test_biases_are_stored_only_if_kept() -> None:
    plain = body(Bottleneck(5, norm="layer"))
    lean, full = stored(plain, biases=False), stored(plain, biases=True)
    assert set(full) - set(lean) == {"down.bias", "up.bias"}
    assert {name for name, (_, is_coded) in full.items() if is_coded} == {
        "down.weight",
        "up.weight",
    }
    assert "norm.bias" in lean
    assert list(stored(coded(Bottleneck(5, norm="layer")).body, biases=False)) == list(lean)


def test_a_whole_cell_stays_whole() -> None:
    class Doubled(type(body(Lora(2)))):
        whole = True

        def around(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return 2 * module(x) + self(x)

    cell = coded(Lora(2))
    assert not cell.whole
    cell.body.__class__ = Doubled
    again = CodedCell(cell.body, Gaussian(2), generator=torch.Generator())
    host, x = nn.Linear(6, 9), torch.randn(2, 6)
    assert again.whole
    assert_close(again.around(host, x), 2 * host(x) + again(x))


def test_a_cell_without_matrices_is_refused() -> None:
    with refused(ConfigError, what="over", got="SsfCell without a weight matrix of its own"):
        coded(Ssf())


def test_a_coded_head_is_a_linear_layer_with_a_rounded_weight() -> None:
    plain, x = nn.Linear(6, 4), torch.randn(2, 6)
    head = CodedLinear.of(plain, Gaussian(1))
    assert_close(head(x), nn.functional.linear(x, Gaussian(1).quantise(plain.weight), plain.bias))
    assert set(head.state_dict()) == {"weight", "bias"}
    merged = head.merged()
    assert type(merged) is nn.Linear
    assert_close(merged(x), head(x))
