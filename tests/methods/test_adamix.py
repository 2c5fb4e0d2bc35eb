"""AdaMix: N dense copies that start alike, part by their draws, and are averaged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from intarsia.adapters import Bottleneck, Lora
from intarsia.core import Site
from intarsia.core.errors import ConfigError
from intarsia.methods import Adamix
from intarsia.mixtures import SoupLinear
from intarsia.routers import random_routers

from ..refusals import refused

OVERS = [Bottleneck(3, activation="gelu", norm="none"), Lora(2)]


def build(config: Any, seed: int = 0) -> Any:
    site = Site("b", 6, 6, config.position)
    return config.build(site, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("over", OVERS, ids=["bottleneck", "lora"])
@pytest.mark.parametrize("share", ["down", "up", "none"])
@pytest.mark.parametrize("draw", ["batch", "sample"])
def test_it_starts_as_its_adapter_and_ends_as_the_mean(over: Any, share: str, draw: str) -> None:
    cell, plain = build(Adamix(over, share=share, draw=draw)), build(over)
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    assert_close(cell(x), plain(x))
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter)
    merged = cell.merged()
    assert type(merged) is type(plain)
    assert_close(merged(x), cell.eval()(x))
    sides = {side: getattr(cell.body, side) for side in ("down", "up")}
    assert {s for s, layer in sides.items() if isinstance(layer, SoupLinear)} == set(
        random_routers(cell.routers)
    )
    assert isinstance(sides["down"], SoupLinear) == (share != "down")
    assert isinstance(sides["up"], SoupLinear) == (share != "up")


def test_noise_parts_the_copies() -> None:
    alike, apart = (build(Adamix(OVERS[0], noise=noise)).body.up for noise in (0.0, 0.01))
    assert not (alike.weights - alike.weights[:1]).any()
    spread = (apart.weights - apart.weights.mean(0)).std().item()
    assert 0.005 < spread < 0.015


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"share": "both"}, "share"),
        ({"noise": -1.0}, "noise"),
        ({"experts": 0}, "experts"),
        ({"active": 5}, "active"),
        ({"draw": "token"}, "draw"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        Adamix(**settings)
