"""Transport with at most k entries a column: its laws, POT as the oracle, and who goes where."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ConfigError, ShapeError
from intarsia.routers import Transport, k_sparse_ot
from intarsia.routers.transport import TransportRouter, _ascent, semi_dual, sparse_simplex

from ..refusals import refused

N, M = 64, 8


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def case(n: int = N, m: int = M, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Cost and uniform marginals of sum 1, as a router of random logits has them."""
    cost = -random(n, m, seed=seed).softmax(-1)
    return cost, cost.new_full((n,), 1 / n), cost.new_full((m,), 1 / m)


def cheapest(cost: Tensor, a: Tensor, b: Tensor) -> float:
    """The cost of the best plan of all, by linear programming."""
    n, m = cost.shape
    rows = torch.kron(torch.eye(n), torch.ones(1, m))
    columns = torch.kron(torch.ones(1, n), torch.eye(m))
    solution = linprog(cost.flatten().numpy(), A_eq=torch.cat([rows, columns]).numpy(),
                    b_eq=torch.cat([a, b]).numpy())  # fmt: skip
    return float(solution.fun)


def simplex_naive(x: Tensor, k: int) -> Tensor:
    """The projection by bisection of its level.  x: (n,)."""
    masked = torch.full_like(x, -math.inf)
    top = x.topk(min(k, len(x))).indices
    masked[top] = x[top]
    low, high = float(x.max()) - 1, float(x.max())
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if (masked - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (masked - low).clamp(min=0)


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 99))
def test_projection_on_the_sparse_simplex(n: int, k: int, seed: int) -> None:
    x = random(n, 3, seed=seed)
    p = sparse_simplex(x, k)
    assert bool(((p > 0).sum(0) <= k).all())
    want = torch.stack([simplex_naive(column, k) for column in x.T], 1)
    assert_close(p, want, atol=1e-9, rtol=0)


@pytest.mark.parametrize("k", [1, 8, 9, 12, 64, 99])
def test_columns_are_exact_and_k_sparse_whatever_the_iterations(k: int) -> None:
    for iterations in (1, 30):
        cost, a, b = case()
        plan = k_sparse_ot(cost, a, b, k, iterations=iterations)
        assert bool((plan >= 0).all())
        assert_close(plan.sum(0), b, atol=1e-12, rtol=0)
        assert int((plan > 0).sum(0).max()) <= k


def test_rows_are_met_where_k_does_not_bind_nearly_met_at_n_over_m_and_not_below() -> None:
    cost, a, b = case()
    error = {
        k: float((k_sparse_ot(cost, a, b, k, iterations=400).sum(1) - a).abs().sum())
        for k in (4, 8, 9, 20)
    }
    assert error[20] < 1e-5
    assert error[9] < 0.03 and error[8] < 0.06
    assert error[4] >= 0.99  # half of the rows at most have an entry


def test_many_entries_are_quadratic_transport_and_its_cost_is_nearly_the_least() -> None:
    cost, a, b = case()
    wide, all_ = (k_sparse_ot(cost, a, b, k, iterations=400) for k in (20, N))
    assert_close(wide, all_)
    assert int((all_ > 0).sum(0).max()) < 20
    least = cheapest(cost, a, b)
    assert least - 1e-6 <= (all_ * cost).sum() <= least + 2e-3


def test_one_entry_has_the_closed_form_and_the_semi_dual_is_a_lower_bound() -> None:
    cost, a, b = case(9, 9)
    alpha = random(9, seed=3) / 10
    closed = (a * alpha).sum() - (b * ((alpha[:, None] - cost).max(0).values - b / 2)).sum()
    assert_close(semi_dual(alpha, cost, a, b, 1, 1.0), closed)
    least = cheapest(cost, a, b)
    bound = least + 0.5 * float((a * a).sum()) + 1e-9  # a permutation is a best plan
    for seed in range(20):
        assert semi_dual(random(9, seed=seed) / 5, cost, a, b, 1, 1.0) <= bound


def test_the_gradient_of_the_semi_dual_is_what_rows_lack() -> None:
    cost, a, b = case(12, 4)
    alpha = (random(12, seed=1) / 10).requires_grad_()
    (slope,) = torch.autograd.grad(semi_dual(alpha, cost, a, b, 5, 0.7), alpha)
    columns = sparse_simplex((alpha[:, None] - cost) / (0.7 * b), 5) * b
    assert_close(slope, a - columns.sum(1))


def test_a_batch_is_its_parts_and_rows_have_no_order() -> None:
    parts = [case(10, 3, seed)[0] for seed in range(3)]
    _, a, b = case(10, 3)
    batch = k_sparse_ot(torch.stack(parts), a.expand(3, -1), b.expand(3, -1), 4)
    for plan, cost in zip(batch, parts, strict=True):
        assert_close(plan, k_sparse_ot(cost, a, b, 4))
    shuffled = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    assert_close(k_sparse_ot(parts[0][shuffled], a, b, 4), batch[0][shuffled])
    moved = k_sparse_ot(parts[0] + 7, a, b, 4)
    assert_close(moved, batch[0], atol=1e-9, rtol=0)


# POT asks SciPy for what SciPy has deprecated
@pytest.mark.filterwarnings("ignore:scipy.optimize. The `disp`:DeprecationWarning")
@pytest.mark.parametrize("k", [8, 9, 12, 20])
def test_the_semi_dual_is_no_lower_than_pots(k: int, capsys: pytest.CaptureFixture[str]) -> None:
    smooth = pytest.importorskip("ot.smooth", reason="POT is not installed")
    cost, a, b = case()
    plan, log = smooth.smooth_ot_semi_dual(
        a.numpy(), b.numpy(), cost.numpy(), 1.0, reg_type="sparsity_constrained", max_nz=k,
        log=True, numItermax=2000,
    )  # fmt: skip
    capsys.readouterr()  # POT 0.9.7 prints a tuple from every projection
    theirs = torch.from_numpy(plan)
    ours = k_sparse_ot(cost, a, b, k, iterations=400)
    assert (ours.sum(1) - a).abs().sum() <= (theirs.sum(1) - a).abs().sum() + 1e-4
    alphas = (_ascent(cost, a, b, k, 1.0, 400), torch.from_numpy(log["alpha"]))
    reached, reference = (semi_dual(alpha, cost, a, b, k, 1.0) for alpha in alphas)
    assert reached >= reference - 1e-6
    if k >= 12:  # where k binds, ties of two columns make the plan no single one
        assert_close(ours, theirs, atol=2e-4, rtol=0)


def build(config: Transport) -> TransportRouter:
    router = config.build(5, generator=torch.Generator().manual_seed(0)).double()
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(1))
    return router


def test_experts_receive_what_the_tokens_have() -> None:
    """T / E each, also where E does not divide T."""
    plan = build(Transport(3, capacity=2.0)).plan(random(7, 3))
    assert_close(plan.sum(0), torch.full_like(plan[0], 7 / 3))


def test_loads_are_even_without_a_balance_loss_and_few_tokens_drop() -> None:
    x = random(256, 5, seed=5) + 1  # some experts are everybody's favourite
    router = build(Transport(8))
    best = (x @ router.weight.T).argmax(-1).bincount(minlength=8)
    assert best.max() / best.double().mean() > 1.3
    load = router(x).load()
    assert load.max() / load.double().mean() <= 1.05 and load.max() <= 32
    assert (router(x).dense().sum(1) == 0).double().mean() < 0.1


@pytest.mark.parametrize("scale", [0.05, 1.0, 40.0])  # at 40 the gate is saturated: p is 0 or 1
def test_tokens_have_an_expert_however_sure_the_gate_is(scale: float) -> None:
    kinds = 3 * random(6, 5, seed=3)
    x = scale * (random(512, 5, seed=5) + kinds[torch.arange(512) % 6])
    routing = build(Transport(8))(x)
    assert len(routing.token.unique()) >= 0.98 * 512
    assert_close(routing.load(), build(Transport(8))(7 * x).load())  # gamma means the same


def test_the_published_cost_leaves_tokens_of_a_sure_gate_without_an_expert() -> None:
    kinds = 3 * random(6, 5, seed=3)
    x = 40 * (random(512, 5, seed=5) + kinds[torch.arange(512) % 6])
    with pytest.warns(UserWarning, match="have no expert"):
        routing = build(Transport(8, cost="p"))(x)
    assert len(routing.token.unique()) < 0.9 * 512


def test_weights_are_probabilities_with_the_gradient_of_those_alone() -> None:
    router, x = build(Transport(4, 1.5)), random(12, 5, seed=5)
    gates, p = router(x).dense(), (x @ router.weight.T).softmax(-1)
    active = gates.detach() > 0
    assert_close(gates, p * active)
    gradients = [
        torch.autograd.grad(g.square().sum(), router.weight)[0] for g in (gates, p * active)
    ]
    assert_close(gradients[0], gradients[1])


def test_per_token_each_goes_to_at_most_so_many_experts() -> None:
    router, x = build(Transport(6, 2.0, per="token")), random(48, 5, seed=5) + 1
    gates = router(x).dense()
    count = (gates > 0).sum(1)
    assert int(count.max()) <= 2 and int(count.min()) >= 1  # nobody is dropped
    half = Transport(6, 1.5, per="token").build(5, generator=torch.Generator().manual_seed(0))
    assert int((half.double()(x).dense() > 0).sum(1).max()) == 2  # rounded up
    load = router(x).load().double()
    best = load = router(x).load().double()
    best = (x @ router.weight.T).topk(2).indices.flatten().bincount(minlength=6)
    assert load.max() / load.mean() < best.max() / best.double().mean()


@pytest.mark.parametrize("per", ["expert", "token"])
def test_small_and_empty_batches(per: str) -> None:
    router = build(Transport(4, per=per))
    for count in (0, 1, 2):
        assert router(random(count, 5)).tokens == count
    equal = torch.ones(8, 5, dtype=torch.float64)  # nothing to choose between
    assert bool(torch.isfinite(router(equal).weight).all())
    router.context.valid = torch.zeros(1, 8, dtype=torch.bool)
    assert not router(equal).dense().any()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"experts": 0}, "experts"),
        ({"capacity": 0.5}, "capacity"),
        ({"capacity": float("inf")}, "capacity"),
        ({"per": "sample"}, "per"),
        ({"cost": "distance"}, "cost"),
        ({"gamma": 0.0}, "gamma"),
        ({"iterations": 0}, "iterations"),
        ({"z": -1.0}, "z"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        Transport(**settings)


def test_bad_problems_are_refused() -> None:
    cost, a, b = case(6, 3)
    with refused(ConfigError, what="k", got=0):
        k_sparse_ot(cost, a, b, 0)
    with refused(ShapeError, what="marginals"):
        k_sparse_ot(cost, b, a, 2)
