"""MoE-X's router: the share of active units that it expects is the share there is."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

import intarsia
from intarsia.core.errors import ConfigError
from intarsia.mixtures import Mixture, StackedExperts
from intarsia.routers import MoeX, PermutationSearch
from intarsia.routers.moe_x import MoeXRouter

from ..refusals import refused

WIDTH, HIDDEN = 5, 9


def experts(count: int = 4, hidden: int = HIDDEN, **settings: Any) -> StackedExperts:
    stacked = StackedExperts(
        count, WIDTH, hidden, act="relu", generator=torch.Generator().manual_seed(0), **settings
    ).double()
    with torch.no_grad():
        for n, parameter in enumerate(stacked.parameters()):
            parameter.normal_(0.1, generator=torch.Generator().manual_seed(n))
    return stacked


def layer(stacked: StackedExperts, **settings: Any) -> Mixture:
    config = MoeX(stacked.experts, min(2, stacked.experts), **settings)
    return Mixture(stacked, config.build(WIDTH, generator=torch.Generator())).double()


def router(stacked: StackedExperts, **settings: Any) -> MoeXRouter:
    gate = layer(stacked, **settings).router
    assert isinstance(gate, MoeXRouter)
    return gate


def rows(count: int = 11, seed: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=draw, dtype=torch.float64)


def test_a_score_of_three_weights_by_hand() -> None:
    """omega = -erf(m / (sqrt 2 s)), m = sum_i x_i mu_i, s^2 = sum_i x_i^2 sigma_i^2.

    One input x = 1, three hidden units with weights 0, 1 and 2: mu = 1, sigma^2 = 2 / 3, so
    m / (sqrt 2 s) = 1 / sqrt(4 / 3) = .8660 and omega = -.7793. The expected share of active units
    is (1 + .7793) / 2 = .8897.
    """
    stacked = StackedExperts(
        1, 1, 3, act="relu", generator=torch.Generator().manual_seed(0)
    ).double()
    with torch.no_grad():
        stacked.up.copy_(torch.tensor([[[0.0], [1.0], [2.0]]]))
    gate = Mixture(stacked, MoeX(1, 1).build(1, generator=torch.Generator())).double().router
    assert isinstance(gate, MoeXRouter)
    x = torch.ones(1, 1, dtype=torch.float64)
    assert gate.scores(x).item() == pytest.approx(-0.7793, abs=1e-4)
    assert gate.share(x).item() == pytest.approx(0.8897, abs=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_the_score_is_the_papers_token_by_token(bias: bool) -> None:
    stacked = experts(bias=bias)
    got = router(stacked).scores(rows())
    for t, x in enumerate(rows()):
        for e in range(4):
            m = s = 0.0
            columns = [(x[i], stacked.up[e, :, i].detach()) for i in range(WIDTH)]
            if stacked.up_bias is not None:
                columns.append((torch.tensor(1.0), stacked.up_bias[e].detach()))
            for value, column in columns:
                m += float(value * column.mean())
                s += float(value**2 * column.var(correction=0))
            assert got[t, e].item() == pytest.approx(-math.erf(m / math.sqrt(2 * s)), abs=1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_the_expected_share_is_that_of_gaussian_weights(bias: bool, gated: bool) -> None:
    stacked = experts(3, 8192, bias=bias, gated=gated)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in stacked.named_parameters():
            if name != "down":  # means that differ by expert, so that shares do
                spread = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
                means = torch.randn(3, 1, *parameter.shape[2:], generator=draw).double()
                parameter.copy_(means + spread)
    x = rows(40)
    share = router(stacked).share(x)
    on = torch.stack([
        (stacked.hidden(x, torch.full((40,), e)) != 0).double().mean(1) for e in range(3)
    ], 1)  # fmt: skip
    assert share.min() < 0.1 and share.max() > 0.9
    assert (share - on).abs().max() < 0.02


def test_the_sparsest_experts_are_chosen_with_softmax_weights() -> None:
    stacked = experts()
    scores, dense = (
        router(stacked, tau=0.3).scores(rows()),
        layer(stacked, tau=0.3).router(rows()).dense(),
    )
    best, index = (scores / 0.3).topk(2)
    assert_close(dense, torch.zeros_like(scores).scatter(1, index, best.softmax(1)))
    shares = router(stacked).share(rows())
    assert bool((shares.gather(1, index).max(1).values <= shares.median(1).values + 1e-9).all())


def test_tokens_in_half_precision_are_squared_in_single() -> None:
    alone = router(experts()).float()
    x = rows().bfloat16()
    assert torch.equal(alone.scores(x), alone.scores(x.float()))


def test_units_of_mean_0_score_0_and_weigh_the_same() -> None:
    stacked = experts(bias=True)
    with torch.no_grad():
        for parameter in (stacked.up, stacked.up_bias):
            assert parameter is not None
            parameter.sub_(parameter.mean(1, keepdim=True))
    routing = router(stacked)
    assert_close(routing.scores(rows()), torch.zeros(11, 4).double(), atol=1e-9, rtol=0)
    assert_close(routing(rows()).weight, torch.full((22,), 0.5).double(), atol=1e-9, rtol=0)


@given(st.floats(1e-4, 1e4), st.integers(0, 99))
def test_the_score_does_not_know_the_scale_of_x(c: float, seed: int) -> None:
    gate = router(experts())
    assert_close(gate.scores(c * rows(seed=seed)), gate.scores(rows(seed=seed)))


def test_one_expert_is_the_mlp_with_relu() -> None:
    stacked = experts(1, bias=True)
    assert stacked.up_bias is not None and stacked.down_bias is not None
    want = (
        torch.relu(rows() @ stacked.up[0].T + stacked.up_bias[0]) @ stacked.down[0].T
        + stacked.down_bias[0]
    )
    assert_close(layer(stacked)(rows()), want)


def test_statistics_follow_the_weights_after_a_step() -> None:
    mixture = layer(experts(bias=True)).train()
    before = mixture.router(rows()).dense()
    optimiser = torch.optim.SGD(mixture.parameters(), lr=0.5)
    (mixture(rows()).square().mean() + intarsia.gating.aux_loss(mixture)).backward()
    optimiser.step()
    assert isinstance(mixture.experts, StackedExperts)
    after = layer(copy.deepcopy(mixture.experts)).router(rows()).dense()
    assert_close(mixture.router(rows()).dense(), after)
    assert not torch.allclose(after, before)


def test_the_weights_teach_the_encoder_and_the_temperature_and_gradients_are_right() -> None:
    stacked = experts(bias=True)
    gate = router(stacked, learn=True)
    assert gate.log_tau is not None and stacked.up_bias is not None
    weight = torch.randn(22, generator=torch.Generator().manual_seed(4)).double()
    (gate(rows()).weight * weight).sum().backward()
    for parameter in (stacked.up, stacked.up_bias, gate.log_tau):
        assert parameter.grad is not None and bool(parameter.grad.any())
    assert stacked.down.grad is None


def test_gradients_are_those_of_differences() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixture = layer(experts(bias=True))

        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.mixture.router, MoeXRouter)
            return self.mixture.router.scores(x)

    model, names = Scores(), ("mixture.experts.up", "mixture.experts.up_bias")
    leaves = [model.get_parameter(n).detach().clone().requires_grad_() for n in names]

    def scores(up: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        weights = dict(zip(names, (up, bias), strict=True))
        return torch.func.functional_call(model, weights, (x,))

    assert torch.autograd.gradcheck(scores, (*leaves, rows(3).requires_grad_()))


@pytest.mark.parametrize("x", [torch.zeros(2, WIDTH), torch.eye(2, WIDTH)])
def test_where_nothing_varies_scores_and_gradients_are_finite(x: Tensor) -> None:
    stacked = experts()
    with torch.no_grad():
        stacked.up.fill_(0.5)
        stacked.up[0] = -0.5
    gate, x = router(stacked), x.double().requires_grad_()
    scores = gate.scores(x)
    sign = torch.tensor([1.0, -1, -1, -1]).double()
    assert_close(scores, sign.expand(2, 4) * float(x.detach().any()))
    scores.sum().backward()
    assert x.grad is not None and stacked.up.grad is not None
    assert bool(x.grad.isfinite().all() and stacked.up.grad.isfinite().all())


def test_the_temperature_starts_as_told_and_is_learned_if_told() -> None:
    plain, learned = (router(experts(), tau=0.2, learn=learn) for learn in (False, True))
    assert_close(plain(rows()).dense(), learned(rows()).dense())
    assert not list(plain.parameters()) and [n for n, _ in learned.named_parameters()] == [
        "log_tau"
    ]
    even = router(experts(), tau=1e6)(rows()).weight
    assert_close(even, torch.full((22,), 0.5).double(), atol=1e-5, rtol=0)


def test_experts_are_in_one_place_of_the_state_and_a_copy_reads_its_own() -> None:
    mixture = layer(experts())
    assert sorted(mixture.state_dict()) == ["experts.down", "experts.up"]
    assert not list(mixture.router.parameters())
    twin = copy.deepcopy(mixture)
    assert isinstance(twin.experts, StackedExperts)
    before = mixture.router(rows()).dense()
    with torch.no_grad():
        twin.experts.up.neg_()
    assert_close(mixture.router(rows()).dense(), before)
    assert not torch.allclose(twin.router(rows()).dense(), before)
    narrow = copy.deepcopy(mixture).bfloat16()  # and it follows its owner
    assert narrow.router(rows().bfloat16()).weight.dtype == torch.bfloat16


def test_a_search_around_it_reads_the_experts_too() -> None:
    config = PermutationSearch(MoeX(4), steps=1)
    stacked = experts()
    search = Mixture(
        stacked, config.build(WIDTH, generator=torch.Generator().manual_seed(0))
    ).double()
    intarsia.routers.search_step(search, 1)
    assert_close(
        search.router(rows()).dense().sort().values, router(stacked)(rows()).dense().sort().values
    )


def test_statistics_cost_once_per_forward_and_a_token_what_a_linear_gate_does() -> None:
    stacked, sizes = experts(3, 64), list[int]()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            out = func(*args, **(kwargs or {}))
            sizes.extend([out.numel()] if isinstance(out, Tensor) else [])
            return out

    gate = router(stacked)
    with Watch():
        gate(rows(1000))
    assert max(sizes) <= 1000 * WIDTH  # nothing of tokens by hidden units


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"experts": 0}, "0"),
        ({"experts": 2, "active": 3}, "3"),
        ({"active": 1}, "1, whose renormalised weight is 1 always"),
        ({"tau": 0.0}, "0.0"),
        ({"tau": math.inf}, "inf"),
        ({"balance": -1.0}, "-1.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], got: str) -> None:
    with refused(ConfigError, got=got):
        MoeX(**settings)


def test_experts_that_cannot_be_read_are_refused() -> None:
    draw = torch.Generator().manual_seed(0)
    gate = MoeX(2).build(WIDTH, generator=draw)
    with refused(ConfigError, what="experts of a MoeXRouter"):
        gate(rows())
    with refused(ConfigError, what="act of experts that a router reads", got="GELU"):
        Mixture(StackedExperts(2, WIDTH, 3, act="gelu", generator=draw), gate)
    with refused(ConfigError, what="experts that a router reads", got="ExpertList"):
        Mixture([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)], gate)
    with refused(ConfigError, what="experts", got="2 that read 6 numbers"):
        Mixture(StackedExperts(2, 6, 3, act="relu", generator=draw), gate)
    stacked = StackedExperts(2, WIDTH, 3, act="relu", generator=draw)
    with torch.no_grad():
        stacked.up[1] = stacked.up[0]
    with refused(
        ConfigError, what="experts", got="2 equal ones, which have one score and stay equal"
    ):
        Mixture(stacked, gate)
