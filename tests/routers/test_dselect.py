"""DSelect-k: selectors in bits, and what becomes of codes that are nobody's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ConfigError
from intarsia.gating.parts import smooth_step
from intarsia.routers import DSelectK
from intarsia.routers.dselect import DSelectKRouter

from ..refusals import refused
from ..toys import rows


def build(config: DSelectK, scale: float = 1.0) -> DSelectKRouter:
    """A router whose bits are `scale` times as large as at the start."""
    router = config.build(5, generator=torch.Generator().manual_seed(0)).double()
    router.bits.data *= scale
    return router


def gates_naive(router: DSelectKRouter, x: Tensor) -> Tensor:
    """Token by token, selector by selector, expert by expert, bit by bit."""
    k, m = router.active, router.width
    gates = torch.zeros(len(x), router.experts, dtype=x.dtype)
    for n, row in enumerate(x):
        mix = (router.mix @ row).softmax(0)
        for t in range(k):
            for j in range(router.experts):
                r = mix[t]
                for b in range(m):
                    s = smooth_step(router.bits[t * m + b] @ row, router.config.gamma)
                    r = r * (s if j >> b & 1 else 1 - s)
                gates[n, j] = gates[n, j] + r
    return gates


@pytest.mark.parametrize("experts", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gates_and_gradients_are_those_of_the_naive_twin(experts: int, scale: float) -> None:
    router, x = build(DSelectK(experts, 2), scale), rows(4).requires_grad_()
    weights = [p for p in (router.bits, router.mix) if p.numel()]
    factor = torch.randn(4, experts, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    results = []
    for gates in (router(x).dense(), gates_naive(router, x)):
        grads = torch.autograd.grad((gates * factor).sum(), [*weights, x], allow_unused=True)
        results.append((gates, grads))
    assert_close(results[0][0], results[1][0])
    assert_close(results[0][1], results[1][1])


def test_a_power_of_two_sums_to_1_another_number_to_what_is_reached() -> None:
    even, odd = build(DSelectK(8, 3), 30), build(DSelectK(6, 3), 30)
    assert even.normalised and not odd.normalised
    assert_close(even(rows(20)).dense().sum(1), torch.ones(20, dtype=torch.float64))
    total = odd(rows(20)).dense().sum(1)
    assert bool((total <= 1 + 1e-9).all()) and bool((total < 0.99).any())


def test_settled_selectors_leave_at_most_k_experts() -> None:
    router, x = build(DSelectK(8, 2), 1e6), rows(50)
    gates = router(x).dense()
    assert bool(((gates > 0).sum(1) <= 2).all())
    assert_close(gates.sum(1), torch.ones(50, dtype=torch.float64))


def test_every_bit_starts_inside_the_band_with_a_gradient() -> None:
    for gamma in (0.1, 1.0, 10.0):
        router, x = build(DSelectK(8, 2, gamma=gamma)), rows(100)
        z = x @ router.bits.T
        assert bool((z.abs() < gamma / 2).all())
        (router(x).dense() * rows(100)[:, :1]).square().sum().backward()
        assert router.bits.grad is not None and bool((router.bits.grad != 0).all())


def test_training_brings_selectors_back_from_codes_that_are_nobodys() -> None:
    router, x = build(DSelectK(5, 1, entropy=0.01, reach=0.1)), rows(64)
    # towards code 7, which is no expert's
    shift = torch.ones(64, 5, dtype=torch.float64)
    router.bits.data.fill_(0.06)
    before = router(shift).dense().sum(1).mean()
    assert before < 0.6
    optimiser = torch.optim.Adam(router.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        torch.stack(list(router(shift).losses.values())).sum().backward()
        optimiser.step()
    assert router(shift).dense().sum(1).mean() > 0.95
    assert set(router(x).losses) == {"entropy", "reach"}
    assert set(build(DSelectK(4))(x).losses) == {"entropy"}
    assert not router.eval()(x).losses


@pytest.mark.parametrize("experts", [3, 5, 6, 7])
def test_where_e_is_no_power_of_two_training_leaves_no_token_without_an_expert(
    experts: int,
) -> None:
    """Train from the default start while a task asks for an expert of each class of tokens."""
    router, x = build(DSelectK(experts, 2)), rows(200)
    target = torch.arange(200) % experts  # which noise does not tell: the bits are pulled about
    optimiser = torch.optim.Adam(router.parameters(), 0.03)
    for _ in range(150):
        optimiser.zero_grad()
        routing = router(x)
        assert bool((routing.expert < experts).all())
        task = -(routing.dense()[torch.arange(200), target] + 1e-3).log().mean()
        (task + torch.stack(list(routing.losses.values())).sum()).backward()
        optimiser.step()
    total = router.eval()(x).dense().sum(1)
    assert bool((total > 0).all()) and bool((total <= 1 + 1e-9).all())
    assert total.mean() > experts / 2**router.width  # what it starts with


def test_lost_mass_costs_a_finite_loss() -> None:
    router = build(DSelectK(5, 1))
    router.bits.data.fill_(1e3)  # code 7 exactly
    routing = router(torch.ones(3, 5, dtype=torch.float64))
    assert not len(routing.weight)
    loss = torch.stack(list(routing.losses.values())).sum()
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert router.bits.grad is not None and bool(torch.isfinite(router.bits.grad).all())


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"experts": 0}, "experts"),
        ({"active": 0}, "active"),
        ({"gamma": 0.0}, "gamma"),
        ({"entropy": -1.0}, "entropy"),
        ({"reach": -1.0}, "reach"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        DSelectK(**settings)
