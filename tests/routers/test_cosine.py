"""Tutel's cosine gate: lengths say nothing, the temperature is learned within its bound."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ConfigError, ShapeError
from intarsia.routers import Cosine
from intarsia.routers.cosine import CosineRouter


def build(**settings: Any) -> CosineRouter:
    config = Cosine(**{"experts": 4, "width": 6} | settings)
    return config.build(5, generator=torch.Generator().manual_seed(0)).double()


def rows(count: int = 9, seed: int = 1) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, dtype=torch.float64, generator=draws)


@torch.no_grad()
def test_weights_are_the_softmax_of_cosines_token_by_token() -> None:
    router, x = build(), rows()
    gates = router(x).dense()
    for t in range(len(x)):
        token = router.project(x[t])
        cosines = [
            float(token @ s / (token.norm() * s.norm())) / 0.5 for s in router.directions.unbind()
        ]
        top = sorted(range(4), key=lambda e: -cosines[e])[:2]
        total = sum(math.exp(cosines[e]) for e in top)
        want = [math.exp(cosines[e]) / total if e in top else 0.0 for e in range(4)]
        assert gates[t].tolist() == pytest.approx(want)


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_lengths_say_nothing(of_token: float, of_direction: float) -> None:
    router, x = build(), rows()
    with torch.no_grad():
        router.project.bias.zero_()
        want = router(x).dense()
        router.directions.mul_(of_direction)
        assert_close(router(of_token * x).dense(), want)


def test_the_temperature_is_learned_and_stays_above_a_hundredth() -> None:
    router, x = build(active=4), rows()
    router(x).dense().square().sum().backward()
    grad = router.log_scale.grad
    assert grad is not None and grad.item() != 0
    with torch.no_grad():
        router.log_scale.fill_(math.log(100))
        want = router.logits(x)
        router.log_scale.fill_(50.0)
        assert_close(router.logits(x), want)


def test_one_expert_has_its_probability() -> None:
    router, x = build(active=1), rows()
    want = router.logits(x).softmax(-1).max(-1).values
    assert_close(router(x).weight, want)
    assert not router.normalised and build(experts=1, active=1).normalised


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"active": 5}, "active"),
        ({"width": 0}, "width"),
        ({"tau": 0.0}, "tau"),
        ({"balance": -1.0}, "balance"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(**settings)
    assert error.value.what == field


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(ShapeError):
        build()(torch.zeros(2, 4, dtype=torch.float64))
