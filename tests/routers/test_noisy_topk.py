"""Noisy top-k: the law of its choice, and its two losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from intarsia.core.errors import ConfigError
from intarsia.routers import NoisyTopK
from intarsia.routers.noisy_topk import NoisyTopKRouter, chances, variation

from ..refusals import refused
from ..toys import rows


def build(config: NoisyTopK, std: float = 1.0) -> NoisyTopKRouter:
    router = config.build(5, generator=torch.Generator().manual_seed(0)).double()
    for i, weight in enumerate((router.gate, router.spread)):
        torch.nn.init.normal_(weight, std=std, generator=torch.Generator().manual_seed(i))
    return router


def test_evaluation_is_softmax_over_the_k_largest_logits() -> None:
    router, x = build(NoisyTopK(6, 3)).eval(), rows(9)
    logits = x @ router.gate.T
    least = logits.sort(descending=True).values[:, 2:3]
    want = logits.masked_fill(logits < least, -torch.inf).softmax(-1)
    assert_close(router(x).dense(), want)


def test_a_logit_of_exactly_0_counts_like_any_other() -> None:
    router = NoisyTopK(4, 2).build(4, generator=torch.Generator()).eval()
    router.gate.data = torch.eye(4)
    gates = router(torch.tensor([[-1.0, 0.0, -2.0, -3.0], [0.0, 0.0, 0.0, -1.0]])).dense()
    assert (gates[0] > 0).tolist() == [True, True, False, False]
    assert_close(gates[0, 1] / gates[0, 0], torch.tensor(1.0).exp())
    assert (gates[1] > 0).sum() == 2


def test_training_draws_about_the_logits_with_the_learned_spread() -> None:
    router, x = build(NoisyTopK(4, 2)), rows(1).expand(20_000, -1)
    clean, spread = x[0] @ router.gate.T, torch.nn.functional.softplus(x[0] @ router.spread.T)
    share = router(x).load() / len(x)
    free = torch.randn(20_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    want = torch.zeros(4).index_add(
        0, (clean + free * spread).topk(2).indices.flatten(), torch.ones(40_000)
    )
    assert_close(share, want / 20_000, atol=0.02, rtol=0)


def test_chance_is_how_often_an_expert_is_in_when_its_noise_alone_is_drawn_anew() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 5, dtype=torch.float64, generator=generator)
    spread = torch.rand(1, 5, dtype=torch.float64, generator=generator) + 0.2
    noisy = clean + noise * spread
    computed = chances(clean, noisy, spread, noisy.topk(2).values)
    assert computed is not None
    for e in range(5):
        again = noisy.expand(20_000, -1).clone()
        fresh = torch.randn(20_000, dtype=torch.float64, generator=generator)
        again[:, e] = clean[0, e] + fresh * spread[0, e]
        often = (again.topk(2).indices == e).any(1).double().mean()
        assert_close(computed[0, e], often, atol=0.02, rtol=0)


def test_losses_are_least_at_equal_shares_and_none_is_asked_for_at_k_of_k() -> None:
    assert variation(torch.ones(4)) == 0
    assert_close(variation(torch.tensor([4.0, 0, 0, 0])), torch.tensor(3.0), atol=1e-4, rtol=0)
    losses = build(NoisyTopK(4, 2))(rows(8)).losses
    assert set(losses) == {"importance", "load"} and all(v > 0 for v in losses.values())
    assert set(build(NoisyTopK(4, 4))(rows(8)).losses) == {"importance"}
    assert not build(NoisyTopK(4, 2)).eval()(rows(8)).losses


def test_the_losses_even_out_the_load() -> None:
    router = NoisyTopK(4, 2, std=0.5).build(5, generator=torch.Generator().manual_seed(0)).double()
    x = rows(256) + 1
    before = variation(router(x).load().double())
    optimiser = torch.optim.Adam(router.parameters(), 0.02)
    for _ in range(150):
        optimiser.zero_grad()
        torch.stack(list(router(x).losses.values())).sum().backward()
        optimiser.step()
    assert variation(router(x).load().double()) < before / 5


def test_padding_has_no_expert_and_no_say() -> None:
    x, valid = rows(8), torch.tensor([True, True, False, True, False, True, True, False])
    routings = []
    for filler in (0.0, 9.0):
        router = build(NoisyTopK(4, 2))
        router.context.valid = valid[None]
        routings.append(router(torch.where(valid[:, None], x, filler)))
    assert not routings[0].dense()[~valid].any()
    assert_close(routings[0].dense(), routings[1].dense())
    assert_close(routings[0].losses, routings[1].losses)


def test_held_noise_is_met_again() -> None:
    router, x = build(NoisyTopK(4, 2)), rows(6)
    router.context.hold = True
    first = router(x).dense()
    assert_close(router(x).dense(), first)
    router.context.redraw()
    assert not torch.equal(router(x).dense(), first)


def test_extreme_inputs_have_finite_losses_and_gradients() -> None:
    router = build(NoisyTopK(4, 2))
    losses = router(1e5 * rows(6)).losses
    torch.stack(list(losses.values())).sum().backward()
    assert all(
        bool(torch.isfinite(p.grad).all()) for p in router.parameters() if p.grad is not None
    )


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"experts": 0}, "0"),
        ({"experts": 2, "active": 3}, "3"),
        ({"active": 1}, "1, a weight of 1 always"),
        ({"load": -1.0}, "-1.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], got: str) -> None:
    with refused(ConfigError, got=got):
        NoisyTopK(**settings)
