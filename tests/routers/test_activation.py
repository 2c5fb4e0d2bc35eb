"""The activation gate: what a temperature means with an activation inside, and without."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.core.errors import ConfigError
from intarsia.models.gaussian_mixture import Parameters, log_gates
from intarsia.routers import ActivationGate
from intarsia.routers.activation import PHI, ActivationRouter

from ..refusals import refused

WIDTH, EXPERTS = 5, 4


def build(phi: str = "sigmoid", **settings: Any) -> ActivationRouter:
    config = ActivationGate(**({"experts": EXPERTS, "phi": phi} | settings))
    router = config.build(WIDTH, generator=torch.Generator().manual_seed(0))
    for n, parameter in enumerate((router.weight, router.bias)):
        if parameter is not None:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(n))
    return router.double()


def rows(count: int = 9, seed: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=draw, dtype=torch.float64)


def scaled(router: ActivationRouter, c: float) -> None:
    """(W, tau) -> (c W, c tau)."""
    with torch.no_grad():
        router.weight.mul_(c)
        router.log_tau.add_(math.log(c))


@pytest.mark.parametrize("phi", PHI)
def test_with_all_experts_it_is_the_gate_of_the_estimator(phi: str) -> None:
    router, x = build(phi, active=EXPERTS, tau=0.7), rows()
    assert router.bias is not None
    no = np.zeros(EXPERTS)
    weight, bias = (p.detach().numpy() for p in (router.weight, router.bias))
    at = Parameters(weight, bias, 0.7, np.zeros((EXPERTS, WIDTH)), no, no)
    want = torch.from_numpy(np.exp(log_gates(at, phi, x.numpy())))
    assert_close(router(x).dense(), want, rtol=1e-6, atol=1e-7)  # log_tau was in float32


@given(st.floats(0.1, 10.0).filter(lambda c: abs(c - 1) > 0.05), st.integers(0, 99))
def test_weights_and_temperature_are_told_apart_with_an_activation_alone(
    c: float, seed: int
) -> None:
    for phi in PHI:
        router, x = build(phi, active=EXPERTS), rows(seed=seed)
        before = router(x).dense()
        scaled(router, c)
        off = float((router(x).dense() - before).abs().max().detach())
        assert off < 1e-10 if phi == "linear" else off > 1e-4, phi


@pytest.mark.parametrize("phi", PHI)
def test_the_temperatures_gradient_is_one_of_the_weights_if_linear(phi: str) -> None:
    """du/dlog tau = -<W, du/dW>, the equation by which estimates fail."""
    router = build(phi, active=2)
    weight = torch.randn(18, generator=torch.Generator().manual_seed(4)).double()
    (router(rows()).weight * weight).sum().backward()
    assert router.log_tau.grad is not None and router.weight.grad is not None
    assert router.log_tau.grad.abs() > 1e-6
    along = -(router.weight.detach() * router.weight.grad).sum()
    assert torch.isclose(router.log_tau.grad, along) == (phi == "linear")


@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("bias", [False, True])
def test_the_k_best_share_as_in_the_softmax_over_all(phi: str, bias: bool) -> None:
    router, x = build(phi, active=2, tau=0.5, bias=bias), rows()
    p = build(phi, active=EXPERTS, tau=0.5, bias=bias)(x).dense()
    kept = p * (p >= p.topk(2).values[:, -1:])
    assert_close(router(x).dense(), kept / kept.sum(1, keepdim=True))


def test_the_temperature_decides_how_even_weights_are() -> None:
    even = build(tau=1e6, bias=False, active=EXPERTS)(rows()).dense()
    assert_close(even, torch.full((9, EXPERTS), 0.25).double(), atol=1e-5, rtol=0)
    cold = build(tau=1e-6, bias=False, active=EXPERTS)
    best = (rows() @ cold.weight.T).argmax(1)  # a sigmoid keeps the order
    assert_close(cold(rows()).dense(), nn.functional.one_hot(best, EXPERTS).double())


@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("size", [1e5, 1e30])
def test_extreme_logits_are_finite_and_so_are_their_gradients(phi: str, size: float) -> None:
    router = build(phi, tau=1e-3).float().train()
    routing = router(size * rows().float())
    (routing.weight.square().sum() + routing.losses["balance"]).backward()
    assert bool(routing.weight.isfinite().all()) and bool((routing.weight >= 0).all())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in router.parameters())


def test_one_expert_has_every_token_with_weight_1() -> None:
    assert_close(build(experts=1, active=1)(rows()).dense(), torch.ones(9, 1).double())


def test_what_it_has_to_learn_and_where_that_starts() -> None:
    draw = torch.Generator().manual_seed(0)
    router = ActivationGate(4).build(WIDTH, generator=draw)
    assert router.log_tau.detach() == 0 and router.bias is not None and not router.bias.any()
    assert [n for n, _ in router.named_parameters()] == ["weight", "bias", "log_tau"]
    bare = ActivationGate(4, bias=False).build(WIDTH, generator=draw)
    assert [n for n, _ in bare.named_parameters()] == ["weight", "log_tau"]


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"experts": 0}, "0"),
        ({"experts": 2, "active": 3}, "3"),
        ({"active": 1}, "1, whose renormalised weight is 1 always"),
        ({"phi": "relu"}, "'relu'"),
        ({"tau": 0.0}, "0.0"),
        ({"tau": math.nan}, "nan"),
        ({"z": -1.0}, "-1.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], got: str) -> None:
    with refused(ConfigError, got=got):
        ActivationGate(**settings)
