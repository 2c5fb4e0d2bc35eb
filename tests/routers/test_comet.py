"""COMET: trees over any number of experts, dense at first and k-sparse once settled."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ConfigError
from intarsia.gating.parts import smooth_step
from intarsia.routers import Comet
from intarsia.routers.comet import CometRouter, leaf_probabilities

from ..refusals import refused
from ..toys import rows


def build(config: Comet, scale: float = 1.0) -> CometRouter:
    """A router whose splits are `scale` times as large as at the start."""
    router = config.build(5, generator=torch.Generator().manual_seed(0)).double()
    router.splits.data *= scale
    return router


def leaf_naive(splits: Tensor, leaf: int) -> Tensor:
    """Return P of one leaf of one tree, from the leaf up to the root.  splits: (E - 1,)."""
    node, p = len(splits) + leaf, splits.new_ones(())
    while node:
        parent = (node - 1) // 2
        p = p * (splits[parent] if node == 2 * parent + 1 else 1 - splits[parent])
        node = parent
    return p


def gates_naive(router: CometRouter, x: Tensor) -> Tensor:
    """Row by row: a softmax over those (tree, leaf) pairs that are reached."""
    k, experts = router.active, router.experts
    gates = []
    for row in x:
        u = router.splits @ row + router.offsets
        s = smooth_step(u, router.config.gamma).view(k, experts - 1)
        a = (router.leaves @ row + router.leaf_offsets).view(k, experts)
        p = torch.stack([torch.stack([leaf_naive(s[t], j) for j in range(experts)])
                         for t in range(k)])  # fmt: skip
        w = a.exp() * p
        gates.append((w / w.sum()).sum(0))
    return torch.stack(gates)


@given(st.integers(1, 17), st.integers(0, 99))
def test_leaves_are_in_heap_order_for_every_e(experts: int, seed: int) -> None:
    s = torch.rand(3, experts - 1, dtype=torch.float64,
                   generator=torch.Generator().manual_seed(seed))  # fmt: skip
    p = leaf_probabilities(s)
    assert_close(p.sum(-1), torch.ones(3, dtype=torch.float64))
    want = torch.stack([torch.stack([leaf_naive(row, j) for j in range(experts)]) for row in s])
    assert_close(p, want)


@pytest.mark.parametrize("experts", [1, 2, 5, 8])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gates_and_gradients_are_those_of_the_naive_twin(experts: int, scale: float) -> None:
    router, x = build(Comet(experts, 2), scale), rows(4).requires_grad_()
    weights = [p for p in router.parameters() if p.numel()]
    factor = torch.randn(4, experts, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    results = []
    for gates in (router(x).dense(), gates_naive(router, x)):
        results.append((gates, torch.autograd.grad((gates * factor).sum(), [*weights, x])))
    assert_close(results[0][0], results[1][0])
    assert_close(results[0][1], results[1][1], atol=1e-9, rtol=1e-5)


@given(st.integers(1, 9), st.integers(1, 4), st.floats(0.1, 1e6), st.integers(0, 99))
def test_weights_sum_to_1(experts: int, active: int, scale: float, seed: int) -> None:
    gates = build(Comet(experts, active), scale)(rows(6, seed)).dense()
    assert_close(gates.sum(1), torch.ones(6, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("active", [1, 2, 3])
def test_settled_trees_leave_at_most_k_experts(active: int) -> None:
    router, x = build(Comet(8, active), 1e6), rows(60)
    assert bool((router.trees(x) > 0).sum(-1).eq(1).all())  # every split is 0 or 1
    gates = router(x).dense()
    assert bool(((gates > 0).sum(1) <= active).all())
    if active == 1:
        assert_close(gates.max(1).values, torch.ones(60, dtype=torch.float64))
    first = build(Comet(8, active))
    assert bool((first(x).dense() > 0).all())  # denser before


def test_every_split_starts_inside_the_band_with_a_gradient() -> None:
    for gamma in (0.1, 1.0, 10.0):
        router, x = build(Comet(8, 2, gamma=gamma)), rows(100)
        u = x @ router.splits.T + router.offsets
        assert bool((u.abs() < gamma / 2).all())
        (router(x).dense() * rows(100, 7)[:, :1]).square().sum().backward()
        assert router.splits.grad is not None and bool((router.splits.grad != 0).all())


@pytest.mark.parametrize(("experts", "active"), [(2, 1), (5, 3), (8, 2)])
def test_the_entropy_is_the_sum_over_trees_in_nats_as_released(experts: int, active: int) -> None:
    router, x = build(Comet(experts, active, entropy=0.7), 20.0), rows(9)
    p = router.trees(x).detach()
    want = 0.7 * sum(float(torch.special.entr(row).sum()) for row in p) / 9
    assert router(x).losses["entropy"].item() == pytest.approx(want, abs=1e-4)
    even = build(Comet(experts, active, entropy=1.0), 0.0)
    if experts in (2, 8):  # a whole tree: its leaves are even while splits say 1/2
        upper = active * math.log(experts)
        assert even(x).losses["entropy"].item() == pytest.approx(upper, abs=1e-4)


def test_leaves_have_logits_of_their_own_where_a_token_says_nothing() -> None:
    router = build(Comet(4, 1))
    router.leaf_offsets.data[2] += 50.0
    assert router(torch.zeros(1, 5, dtype=torch.float64)).dense()[0, 2] > 0.99


def test_trees_that_are_dead_have_finite_gradients() -> None:
    router = build(Comet(5, 2), 1e6)
    routing = router(rows(8))
    (routing.weight.square().sum() + routing.losses["entropy"]).backward()
    for parameter in router.parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())
    assert router.splits.grad is not None and not router.splits.grad.any()


def test_the_entropy_penalty_settles_the_trees() -> None:
    router, x = build(Comet(6, 2, entropy=1.0)), rows(64)
    optimiser = torch.optim.Adam(router.parameters(), 0.1)
    for _ in range(150):
        optimiser.zero_grad()
        router(x).losses["entropy"].backward()
        optimiser.step()
    assert (router(x).dense() > 0).sum(1).double().mean() < 2.5
    assert not router.eval()(x).losses


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"experts": 0}, "experts"),
        ({"active": 0}, "active"),
        ({"gamma": 0.0}, "gamma"),
        ({"entropy": -1.0}, "entropy"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        Comet(**settings)
