"""Top-k routing: weights by scale, float32 logits, jitter in training only, losses with padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ConfigError
from intarsia.gating import aux_loss
from intarsia.routers import TopK, TopKRouter

from ..refusals import refused


def build(config: TopK, width: int = 6, seed: int = 0) -> TopKRouter:
    router = config.build(width, generator=torch.Generator().manual_seed(seed)).double()
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(seed))
    return router


def rows(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 6, dtype=torch.float64, generator=generator)


def probs(router: TopKRouter, x: Tensor) -> Tensor:
    return (x @ router.weight.T).softmax(-1)


@given(st.integers(1, 5), st.integers(0, 7), st.data())
def test_each_row_has_its_k_likeliest_experts(
    experts: int, count: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, experts))
    router, x = build(TopK(experts, k, "prob")), rows(count)
    want = probs(router, x)
    least = want.topk(k).values[:, -1:] if count else want[:, :1]
    assert_close(router(x).dense(), torch.where(want >= least, want, 0))


def test_k_of_k_renormalised_is_the_dense_softmax() -> None:
    router, x = build(TopK(4, 4)), rows(9)
    assert_close(router(x).dense(), probs(router, x))


@pytest.mark.parametrize("scale", ["renormalised", "prob", "ste", "none"])
def test_weights_and_what_the_router_learns_from_them(scale: str) -> None:
    k = 2 if scale == "renormalised" else 1
    router, x = build(TopK(4, k, scale, balance=0.0)), rows(9)
    weight = router(x).weight
    p = probs(router, x).topk(k).values
    match scale:
        case "renormalised":
            assert_close(weight.view(9, 2).sum(1), torch.ones(9, dtype=torch.float64))
            want = p / p.sum(1, keepdim=True)
        case "prob" | "ste":
            want = p
        case _:
            assert torch.equal(weight, torch.ones_like(weight)) and not weight.requires_grad
            return
    if scale == "ste":
        assert torch.equal(weight, torch.ones_like(weight))  # to the bit, not to rounding
    else:
        assert_close(weight, want.flatten())
    sign = torch.randn(want.numel(), dtype=torch.float64)
    ours = torch.autograd.grad((weight * sign).sum(), router.weight)[0]
    assert_close(ours, torch.autograd.grad((want.flatten() * sign).sum(), router.weight)[0])


def test_logits_are_in_float32_under_autocast_and_for_half_inputs() -> None:
    router, x = build(TopK(4, 2, "prob")).float(), rows(64).float()
    want = router(x).weight
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(router(x).weight, want, rtol=0, atol=0)
    half = router(x.bfloat16())
    assert half.weight.dtype == torch.bfloat16
    exact = router(x.bfloat16().float())
    assert torch.equal(half.expert, exact.expert)
    assert torch.equal(half.weight, exact.weight.bfloat16())


def test_jitter_is_in_training_only_and_leaves_the_input_alone() -> None:
    torch.manual_seed(0)
    router, x = build(TopK(4, 2, jitter=0.5)), rows(32)
    before = x.clone()
    assert not torch.equal(router(x).dense(), router(x).dense())
    assert torch.equal(x, before)
    router.eval()
    assert torch.equal(router(x).dense(), router(x).dense())
    assert_close(router(x).dense(), build(TopK(4, 2)).eval()(x).dense())


@pytest.mark.parametrize("k", [1, 2])
def test_balance_is_k_at_uniform_routing_and_e_at_collapse(k: int) -> None:
    scale = "prob" if k == 1 else "renormalised"
    router = build(TopK(4, k, scale, balance=0.01))
    with torch.no_grad():
        router.weight.copy_(torch.eye(4, 6))
    x = torch.zeros(4, 6, dtype=torch.float64)
    x[torch.arange(4), torch.arange(4)] = 1e-9  # equal probabilities, each expert first once
    x[torch.arange(4), (torch.arange(4) + 1) % 4] = 0.5e-9  # and second once
    assert_close(router(x).losses["balance"], torch.tensor(0.01 * k, dtype=torch.float64))
    x = torch.zeros(5, 6, dtype=torch.float64)
    x[:, 0] = 1e3
    collapsed = router(x).losses["balance"]
    assert_close(collapsed, torch.tensor(0.01 * 4, dtype=torch.float64))


def test_losses_are_kept_for_the_training_loop_and_only_in_training() -> None:
    router, x = build(TopK(4, 2, balance=0.01, z=0.001)), rows(9)
    routing = router(x)
    assert set(routing.losses) == {"balance", "z"}
    logits = x @ router.weight.T
    assert_close(routing.losses["z"], 0.001 * logits.logsumexp(-1).square().mean())
    assert_close(aux_loss(router).double(), sum(routing.losses.values()), rtol=1e-6, atol=0)
    assert not router.eval()(x).losses


def test_padding_has_no_expert_and_no_loss() -> None:
    router, x = build(TopK(4, 2, z=0.1)), rows(2, 3)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    alone = router(x[valid])
    x[~valid] = torch.nan  # as attention gives for rows that attend to nothing
    router.context.valid = valid
    padded = router(x)
    assert padded.tokens == 6 and len(padded.token) == 6  # 3 real tokens, 2 experts each
    assert_close(padded.dense()[valid.flatten()], alone.dense())
    for name, loss in padded.losses.items():
        assert_close(loss, alone.losses[name])
        assert torch.autograd.grad(loss, router.weight, retain_graph=True)[0].isfinite().all()
    router.context.valid = torch.zeros(2, 3, dtype=torch.bool)
    nothing = router(x)
    assert not len(nothing.token) and not nothing.losses


def test_a_nan_token_is_its_own_misfortune() -> None:
    router, x = build(TopK(4, 2)), rows(5)
    want = router(x).dense()
    x[2] = torch.nan
    got = router(x)
    assert bool((got.expert < 4).all())
    keep = torch.tensor([0, 1, 3, 4])
    assert_close(got.dense()[keep], want[keep])
    assert got.losses["balance"].isnan()  # so that the training loop stops and says why


def test_the_gate_starts_from_its_generator_and_as_wide_as_asked() -> None:
    a, b = (TopK(8, std=0.02).build(512, generator=torch.Generator().manual_seed(3)) for _ in "ab")
    assert torch.equal(a.weight, b.weight) and a.bias is None
    assert 0.018 < float(a.weight.detach().std()) < 0.022
    biased = TopK(8, bias=True).build(4, generator=torch.Generator()).bias
    assert biased is not None and not biased.any()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"experts": 0}, "experts"),
        ({"active": 0}, "active"),
        ({"experts": 2, "active": 3}, "active"),
        ({"scale": "half"}, "scale"),
        ({"active": 1}, "scale"),
        ({"std": -1.0}, "std"),
        ({"jitter": 1.0}, "jitter"),
        ({"balance": -1.0}, "balance"),
        ({"z": float("nan")}, "z"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        TopK(**settings)


def test_one_expert_is_allowed() -> None:
    assert torch.equal(build(TopK(1, 1))(rows(3)).weight, torch.ones(3, dtype=torch.float64))


def test_std_is_the_deviation_of_the_first_weights() -> None:
    narrow, wide = (
        TopK(4, std=std).build(6, generator=torch.Generator().manual_seed(0))
        for std in (0.02, 0.04)
    )
    torch.testing.assert_close(2 * narrow.weight, wide.weight)
