"""The dense-to-sparse gate: its limits in temperature and threshold, its clock, its experts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.core.errors import ConfigError
from intarsia.gating import redraw
from intarsia.mixtures.mixture import Mixture
from intarsia.routers import EvoMoe, anneal, diversify_
from intarsia.routers.evomoe import EvoMoeRouter

from ..refusals import refused

WIDTH = 5


def build(**settings: Any) -> EvoMoeRouter:
    router = EvoMoe(**({"experts": 4, "hard_after": None} | settings)).build(
        WIDTH, generator=torch.Generator().manual_seed(0)
    )
    nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(1))
    return router.double().eval()


def rows(count: int = 9, seed: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=draw, dtype=torch.float64)


def plain(router: EvoMoeRouter, x: Tensor, tau: float = 1.0) -> Tensor:
    return (x @ router.weight.T / tau).softmax(-1)


def test_hot_is_even_and_cold_is_one_hot() -> None:
    x = rows()
    hot = build(tau=(1e6, 0.1), weights="gumbel")
    assert_close(hot(x).dense(), torch.full((9, 4), 0.25, dtype=torch.float64), atol=1e-5, rtol=0)
    cold = build(tau=(1e-4, 1e-4), weights="gumbel")
    best = nn.functional.one_hot((x @ cold.weight.T).argmax(-1), 4).double()
    assert_close(cold(x).dense(), best)
    cold.train().context.hold = True  # of logits and noise while training
    noisy = cold(x).dense()
    noise = cold.noise.held
    assert noise is not None and not torch.equal(noisy, best)
    want = nn.functional.one_hot((x @ cold.weight.T + noise).argmax(-1), 4).double()
    assert_close(noisy, want)


def test_without_a_threshold_it_is_the_gumbel_softmax_mixture() -> None:
    router, x = build(tau=(0.7, 0.3), threshold=0.0, weights="gumbel").train(), rows()
    router.context.hold = True
    got = router(x).dense()
    noise = router.noise.held
    assert noise is not None
    assert_close(got, ((x @ router.weight.T + noise) / 0.7).softmax(-1))
    assert_close(router(x).dense(), got)  # held, as gradient checkpointing wants it
    redraw(router)
    assert not torch.equal(router(x).dense(), got)
    draws = torch.cat([router._gumbel(1000) for _ in range(20)])
    assert draws.mean().item() == pytest.approx(0.5772, abs=0.02)  # of a standard Gumbel
    assert draws.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.05)


@pytest.mark.parametrize("weights", ["renormalised", "plain", "gumbel"])
def test_those_below_the_threshold_are_out_and_weights_are_as_named(weights: str) -> None:
    router, x = build(tau=(0.5, 0.1), threshold=0.1, weights=weights), rows()
    p = plain(router, x, 0.5)
    want = (p if weights == "gumbel" else plain(router, x)) * (p > 0.1)
    if weights == "renormalised":
        want = want / want.sum(-1, keepdim=True)
    assert_close(router(x).dense(), want)
    assert (want == 0).any() and (router(x).load() == (p > 0.1).sum(0)).all()


def test_outputs_keep_their_size_as_it_cools_unless_plain() -> None:
    x = rows(200)
    for weights, keeps in (("renormalised", True), ("plain", False)):
        sums = [build(tau=(t, t), weights=weights)(x).dense().sum(-1).mean() for t in (5, 0.05)]
        assert (abs(sums[0] - sums[1]) < 1e-9) == keeps
        assert keeps or sums[1] < 0.9 * sums[0]


def test_an_expert_alone_still_teaches_the_gate() -> None:
    router, x = build(tau=(1e-3, 1e-3)), rows()
    routing = router(x)
    assert_close(routing.weight, torch.ones(9, dtype=torch.float64))
    routing.weight.sum().backward()
    want = torch.autograd.grad(plain(router, x).log().max(-1).values.sum(), router.weight)[0]
    assert router.weight.grad is not None
    assert_close(router.weight.grad, want)


@pytest.mark.parametrize(("shape", "half"), [("exponential", (2.0 * 0.5) ** 0.5), ("linear", 1.25)])
def test_the_temperature_falls_until_its_time_and_stays(shape: str, half: float) -> None:
    config = EvoMoe(tau=(2.0, 0.5), shape=shape, until=0.4)
    taus = [config.temperature(step, 100) for step in range(100)]
    assert taus[0] == 2 and taus[20] == pytest.approx(half)
    assert taus[40:] == pytest.approx([0.5] * 60)
    assert all(a >= b for a, b in zip(taus, taus[1:], strict=False))


def test_the_clock_is_in_the_checkpoint_whatever_the_dtype() -> None:
    router = build(tau=(2.0, 0.3), hard_after=0.8)
    assert router.at() == (2.0, False)
    anneal(nn.Sequential(router), 21, 70)
    state = router.at()
    assert state[0] == pytest.approx(0.3) and not state[1]
    anneal(router, 10, 70)
    restored = build(tau=(2.0, 0.3), hard_after=0.8)
    restored.load_state_dict(router.state_dict())
    assert restored.at() == router.at() != state
    assert_close(restored(rows()).dense(), router(rows()).dense())
    assert copy.deepcopy(router).bfloat16().at() == router.at()
    anneal(router, 56, 70)
    assert router.at()[1]


def test_the_clock_is_each_routers_own() -> None:
    moved, unmoved = build(), build()
    anneal(moved, 9, 10)
    assert moved.at()[0] < unmoved.at()[0] == unmoved.config.tau[0]


def test_fit_moves_the_clock_and_experts_drop_out() -> None:
    from torch.utils.data import TensorDataset

    from intarsia.fitting import fit

    draw = torch.Generator().manual_seed(0)
    router = EvoMoe(3, tau=(2.0, 0.05), until=0.5, hard_after=None).build(WIDTH, generator=draw)
    nn.init.normal_(router.weight, generator=draw)
    mixture = Mixture([nn.Linear(WIDTH, 2) for _ in range(3)], router)
    x = torch.randn(32, WIDTH, generator=draw)
    before = len(router.eval()(x).expert)
    fit(mixture, TensorDataset(x, (x[:, 0] > 0).long()), epochs=4, batch_size=8)
    assert router.clock.tolist() == [15, 16]
    assert before == 96 > len(router.eval()(x).expert)


def test_evaluation_is_training_without_noise_and_hard_is_the_same_in_both() -> None:
    router, x = build(tau=(0.5, 0.5), balance=0.0), rows()
    router.train().context.hold = True
    router.context.held[router.noise] = torch.zeros(9, 4)
    assert_close(router(x).dense(), router.eval()(x).dense())
    redraw(router)
    router = build(tau=(0.5, 0.5), hard_after=0.5, balance=0.0)
    anneal(router, 1, 2)
    hard = router(x)
    assert torch.equal(hard.dense(), router.train()(x).dense())
    assert hard.load().sum() == 9 and torch.equal(hard.expert, (x @ router.weight.T).argmax(-1))
    weights = build(tau=(0.5, 0.5), hard_after=0.5, weights="plain")(x).dense()
    assert_close(weights.sum(-1), plain(router, x).max(-1).values)


def test_by_default_it_ends_as_a_gate_of_one_expert_and_is_evaluated_as_one() -> None:
    """Section 3: from dense to sparse; the release's validation has the one best expert."""
    router, x = build(hard_after=EvoMoe().hard_after), rows(50)
    best = (x @ router.weight.T).argmax(-1)
    steps = 20
    counts = []
    for step in range(steps):
        anneal(router, step, steps)
        assert torch.equal(router.eval()(x).expert, best)  # at every step
        counts.append(len(router.train()(x).expert) / 50)
    assert counts[0] > 3.9 and counts[6:] == [1.0] * 14 and min(counts[:6]) > 1
    assert not EvoMoe(until=0.5).hard(9, 20) and EvoMoe(until=0.5).hard(10, 20)  # cooled first
    soft = build(hard_after=None)
    anneal(soft, steps - 1, steps)
    assert len(soft.eval()(x).expert) > 50


def test_the_balance_loss_is_that_of_the_paper_and_padding_is_in_no_sum() -> None:
    router, x = build(tau=(0.5, 0.5), threshold=0.1, weights="plain", balance=0.3).train(), rows()
    router.context.hold = True
    router.context.held[router.noise] = torch.zeros(9, 4)
    gates = plain(router, x) * (active := plain(router, x, 0.5) > 0.1)
    want = 0.3 * 16 * (gates.mean(0) * active.double().mean(0)).mean()
    assert_close(router(x).losses["balance"], want)
    valid = torch.tensor([True] * 6 + [False] * 3)
    router.context.valid = valid[None]
    got = router(x)
    assert not got.dense()[~valid].any()
    want = 0.3 * 16 * (gates[:6].mean(0) * active[:6].double().mean(0)).mean()
    assert_close(got.losses["balance"], want)


def test_one_expert_is_the_dense_layer() -> None:
    router = build(experts=1, threshold=0.5)
    assert_close(router(rows()).dense(), torch.ones(9, 1, dtype=torch.float64))


def test_experts_diversify_by_their_own_masks_and_equal_ones_add_up_to_the_dense_layer() -> None:
    def experts() -> list[nn.Module]:
        first = nn.Linear(WIDTH, 50).double()
        return [copy.deepcopy(first) for _ in range(4)]

    copies, x = experts(), rows()
    diversify_(copies, 0.0, torch.Generator().manual_seed(0))
    dense = copies[0](x)
    for settings, exact in (({}, True), ({"weights": "plain", "threshold": 0.2}, False)):
        router = build(tau=(0.5, 0.5), **settings)
        y = Mixture(copies, router)(x)
        assert_close(y, router(x).dense().sum(-1, keepdim=True) * dense)
        assert torch.allclose(y, dense) == exact
    torch.manual_seed(0)
    second = experts()
    before = copy.deepcopy(second)
    diversify_(second, 0.2, torch.Generator().manual_seed(0))
    gone = [(new.weight == 0) for new in second if isinstance(new, nn.Linear)]
    for mask, new, old in zip(gone, second, before, strict=True):
        assert isinstance(new, nn.Linear) and isinstance(old, nn.Linear)
        assert 0.1 < mask.double().mean() < 0.3 and torch.equal(new.bias, old.bias)
        assert torch.equal(new.weight[~mask], old.weight[~mask])
    assert not torch.equal(gone[0], gone[1])


def test_nothing_larger_than_tokens_by_experts_is_made() -> None:
    count, experts = 4000, 16
    router = build(experts=experts).train()
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            out = func(*args, **(kwargs or {}))
            sizes.extend([out.numel()] if isinstance(out, Tensor) else [])
            return out

    with Watch():
        router(rows(count))
    assert max(sizes) <= count * experts


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"experts": 0}, "experts"),
        ({"tau": (1.0, 0.0)}, "tau"),
        ({"until": 0.0}, "until"),
        ({"hard_after": 2.0}, "hard_after"),
        ({"threshold": 0.125}, "threshold"),
        ({"weights": "soft"}, "weights"),
        ({"shape": "cosine"}, "shape"),
        ({"balance": -1.0}, "balance"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        EvoMoe(**settings)


def test_annealing_nothing_and_bad_fractions_are_refused() -> None:
    with refused(ConfigError, what="anneal"):
        anneal(nn.Linear(2, 2), 0, 2)
    with refused(ConfigError, what="step", got=2):
        anneal(build(), 2, 2)
    with refused(ConfigError, what="fraction", got=1.0):
        diversify_([nn.Linear(2, 2)], 1.0, torch.Generator())
