"""Top-p routing: the fewest experts that reach p, with their probabilities as weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ConfigError
from intarsia.routers import TopP

from ..refusals import refused


def route(config: TopP, x: Tensor) -> tuple[Tensor, Tensor]:
    """Its gates, and all probabilities."""
    router = config.build(x.shape[1], generator=torch.Generator().manual_seed(0)).double()
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(1))
    return router(x).dense(), (x @ router.weight.T / config.temperature).softmax(-1)


@given(st.integers(1, 6), st.floats(0.05, 1.0), st.floats(0.2, 4.0), st.integers(0, 99))
def test_the_fewest_experts_that_reach_p(
    experts: int, p: float, temperature: float, seed: int
) -> None:
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gates, probs = route(TopP(experts, p, temperature), x)
    active = gates > 0
    assert_close(gates, probs * active)  # not renormalised
    total = gates.sum(1)
    assert bool((total >= p - 1e-9).all())
    least = torch.where(active, gates, torch.inf).min(1).values
    assert bool((total - least < p).all())  # without the last one it is too little
    excluded = torch.where(active, 0.0, probs).max(1).values
    assert bool((excluded <= least).all())


def test_temperature_divides_logits_not_probabilities() -> None:
    x = torch.randn(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sharp, flat = ((route(TopP(6, 0.8, t), x)[0] > 0).sum() for t in (0.1, 10.0))
    assert sharp < 1.5 * 64 and flat > 4 * 64


def test_p_of_one_is_everybody() -> None:
    x = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gates, probs = route(TopP(4, 1.0, 3.0), x)
    assert_close(gates, probs)


def test_a_nan_token_keeps_one_expert() -> None:
    x = torch.full((2, 5), torch.nan, dtype=torch.float64)
    router = TopP(4).build(5, generator=torch.Generator()).double()
    assert router(x).token.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"experts": 0}, "experts"),
        ({"p": 0.0}, "p"),
        ({"p": 1.1}, "p"),
        ({"temperature": 0.0}, "temperature"),
        ({"jitter": -0.1}, "jitter"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        TopP(**settings)


def test_the_losses_are_of_the_probabilities_that_choose() -> None:
    x = torch.randn(50, 6)
    losses = []
    for temperature, scale in ((0.1, 1.0), (1.0, 10.0)):
        config = TopP(4, temperature=temperature, balance=0.1, z=0.1)
        router = config.build(6, generator=torch.Generator().manual_seed(0)).train()
        with torch.no_grad():
            router.weight.mul_(scale)
        losses.append(router(x).losses)
    assert_close(losses[0], losses[1])
