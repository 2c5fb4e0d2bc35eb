"""Bi-Adapter: any adapter, one bit per weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from intarsia.adapters import Bottleneck, CodedCell, Lora
from intarsia.core import Site
from intarsia.core.errors import ConfigError
from intarsia.core.registry import method_from_dict, method_to_dict
from intarsia.methods import BiAdapter, Mosa

from ..refusals import refused


def build(config: BiAdapter, seed: int = 0) -> CodedCell:
    return config.build(Site("b.mlp", 24, 24), generator=torch.Generator().manual_seed(seed))


def fit(cell: torch.nn.Module, steps: int = 150) -> float:
    """The error left after learning a map of its own width."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 24, generator=generator)
    up, down = torch.randn(24, 8, generator=generator), torch.randn(8, 24, generator=generator)
    y = 0.1 * torch.relu(x @ down.T / 5) @ up.T
    optimizer = torch.optim.AdamW(cell.parameters(), 0.02, weight_decay=0)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (cell(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_bits_buy_more_as_width_than_as_floats() -> None:
    wide = fit(build(BiAdapter(Bottleneck(32, norm="none", scale=1.0), bits=1)))
    narrow = fit(build(BiAdapter(Bottleneck(1, norm="none", scale=1.0), bits=32)))  # as many bytes
    assert wide < 0.8 * narrow


def test_at_32_bits_it_is_the_float_adapter() -> None:
    over = Bottleneck(8, norm="none")
    cell = build(BiAdapter(over, bits=32, biases=True))
    plain = over.build(Site("b.mlp", 24, 24), generator=torch.Generator().manual_seed(0))
    assert BiAdapter(bits=32).format is None
    assert fit(cell, 20) == fit(plain, 20)


def test_the_same_seed_gives_the_same_cell_and_the_body_starts_as_it_would() -> None:
    a, b = (build(BiAdapter(Lora(4))) for _ in range(2))
    assert_close(dict(a.state_dict()), dict(b.state_dict()), rtol=0, atol=0)
    plain = Lora(4).build(Site("b.mlp", 24, 24), generator=torch.Generator().manual_seed(0))
    assert torch.equal(a.body.down.weight, plain.down.weight)


def test_places_and_settings_are_those_of_what_it_codes() -> None:
    config = BiAdapter(Bottleneck(4, "pfeiffer"), bits=4, codebook="lloyd")
    assert (config.roles, config.position) == (("mlp",), "sequential")
    assert method_from_dict(method_to_dict(config)) == config
    assert method_from_dict(method_to_dict(BiAdapter(Mosa(Lora(2))))) == BiAdapter(Mosa(Lora(2)))


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"bits": 0}, "0"),
        ({"bits": 16}, "16"),
        ({"codebook": "kmeans"}, "'kmeans'"),
        ({"start": 0.0}, "0.0"),
        ({"over": "lora"}, "str"),
        ({"over": BiAdapter()}, "BiAdapter"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], got: str) -> None:
    with refused(ConfigError, got=got):
        BiAdapter(**settings)
