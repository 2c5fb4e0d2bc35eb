"""The search for a permutation: soft, then found, kept in the checkpoint, a mere relabelling."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.core.errors import ConfigError
from intarsia.gating import aux_loss
from intarsia.gating import load as statistics
from intarsia.gating.parts import PartsRouter
from intarsia.routers import Comet, DSelectK, ExpertChoice, PermutationSearch, TopK, search_step
from intarsia.routers.permutation import PermutationRouter, hungarian, sinkhorn
from intarsia.routers.random import RandomRouting

from ..refusals import refused
from ..toys import rows

GATES = [TopK(4), Comet(5), DSelectK(6), ExpertChoice(4)]


def build(config: PermutationSearch, seed: int = 0) -> PermutationRouter:
    return config.build(5, generator=torch.Generator().manual_seed(seed)).double()


def put(router: PermutationRouter, order: Tensor) -> None:
    """Scores of which P is this permutation."""
    router.scores.data.zero_().scatter_(2, order.expand(len(router.scores), -1)[..., None], 1.0)


def test_sinkhorn_is_doubly_stochastic() -> None:
    p = sinkhorn(torch.randn(2, 7, 7, dtype=torch.float64,
                             generator=torch.Generator().manual_seed(0)), 100)  # fmt: skip
    sums = torch.ones(2, 7, dtype=torch.float64)
    assert_close(p.sum(-1), sums, atol=1e-12, rtol=0)
    assert_close(p.sum(-2), sums, atol=1e-6, rtol=0)


def test_hungarian_is_the_best_of_all_permutations() -> None:
    for seed in range(5):
        p = torch.rand(5, 5, generator=torch.Generator().manual_seed(seed))
        best = max(itertools.permutations(range(5)), key=lambda o: float(p[range(5), o].sum()))
        assert hungarian(p).tolist() == list(best)


@pytest.mark.parametrize("gate", GATES, ids=lambda g: type(g).__name__)
def test_p_of_the_identity_reproduces_the_gate(gate: Any) -> None:
    router, x = build(PermutationSearch(gate)), rows(9)
    put(router, torch.arange(gate.experts))
    want = router.gate.route(x, None).dense()
    assert_close(router(x).dense(), want)
    router.before_step(100, 100)
    assert_close(router(x).dense(), want)


@pytest.mark.parametrize("per_part", [False, True])
def test_what_is_found_relabels_experts_and_stays(per_part: bool) -> None:
    router, x = build(PermutationSearch(Comet(5, 2), steps=3, per_part=per_part)), rows(9)
    order = torch.tensor([3, 0, 4, 1, 2])
    put(router, order)
    plain = router.gate.route(x, None).dense()
    for step in range(3):
        router.before_step(step, 100)
        assert not router.is_final
        assert_close(router(x).dense()[:, order], plain)  # P is hard already, made from scores
    router.before_step(3, 100)
    assert router.is_final
    put(router, torch.arange(5))  # what is found does not follow its scores any more
    router.before_step(4, 100)
    assert_close(router(x).dense()[:, order], plain)


def test_each_part_has_its_own_permutation() -> None:
    router, x = build(PermutationSearch(Comet(4, 2), steps=1, per_part=True)), rows(9)
    first, second = torch.tensor([1, 0, 3, 2]), torch.tensor([0, 2, 1, 3])
    router.scores.data.zero_()
    for part, order in zip(router.scores.data, (first, second), strict=True):
        part[range(4), order] = 1
    assert isinstance(router.gate, PartsRouter)
    parts = router.gate.parts(x)[0]
    want = torch.zeros(9, 4, dtype=x.dtype)
    want[:, first] += parts[:, 0]
    want[:, second] += parts[:, 1]
    assert_close(router(x).dense(), want)
    router.before_step(1, 100)
    assert_close(router(x).dense(), want)


@pytest.mark.parametrize("gate", [TopK(4, balance=0.5), Comet(5, entropy=0.3)])
@pytest.mark.parametrize("per_part", [False, True])
def test_losses_are_the_gates_and_the_entropy_of_rows_and_columns(
    gate: Any, per_part: bool
) -> None:
    if per_part and isinstance(gate, TopK):
        return
    config = PermutationSearch(gate, entropy=0.7, steps=3, per_part=per_part)
    router, x = build(config), rows(9)
    router.scores.data.normal_(generator=torch.Generator().manual_seed(3))
    plan = router.soft()
    logs = (plan + 1e-6).log()
    entropy = -(plan * logs).sum((1, 2)).sum() - (plan.mT * logs.mT).sum((1, 2)).sum()
    losses = router(x).losses
    assert_close(losses["permutation"], 0.7 * entropy)
    alone = router.gate.route(x, None).losses
    assert alone and {n: float(v.detach()) for n, v in losses.items() if n != "permutation"} == {
        name: pytest.approx(float(value.detach())) for name, value in alone.items()
    }
    router.before_step(3, 100)
    assert float(router(x).losses["permutation"].detach()) == 0
    assert "permutation" not in router.eval()(x).losses


def test_soft_gates_keep_the_sum_and_train_the_scores() -> None:
    router, x = build(PermutationSearch(Comet(5, 2), start=0.1, end=0.01)), rows(9)
    routing = router(x)
    assert_close(routing.dense().sum(1), torch.ones(9, dtype=x.dtype))
    (routing.dense() * rows(9, 4)).sum().backward()
    assert router.scores.grad is not None and bool((router.scores.grad != 0).all())
    assert set(routing.losses) == {"entropy", "permutation"}


def test_training_finds_the_permutation_that_the_loss_wants() -> None:
    config = PermutationSearch(TopK(4, 2, balance=0.0), steps=60, start=0.1, end=0.01, entropy=0.0)
    router, x = build(config), rows(64)
    nn.init.normal_(router.gate.weight, generator=torch.Generator().manual_seed(1))  # pyright: ignore
    order = torch.tensor([2, 0, 3, 1])
    plain = router.gate.route(x, None).dense().detach()
    optimiser = torch.optim.Adam([router.scores], 0.02)
    for step in range(61):
        search_step(router, step)
        optimiser.zero_grad()
        (router(x).dense()[:, order] - plain).square().sum().backward()
        optimiser.step()
    assert router.order.tolist() == [order.tolist()]


def test_the_state_of_the_search_is_in_the_checkpoint() -> None:
    config = PermutationSearch(Comet(5, 2), steps=10)
    ours, x = build(config), rows(9)
    ours.before_step(4, 100)
    theirs = build(config, seed=1)
    theirs.load_state_dict(ours.state_dict())
    assert_close(theirs(x).dense(), ours(x).dense())  # tau is a matter of the step
    assert not torch.equal(ours.soft(), build(config).soft())
    ours.before_step(10, 100)
    theirs = build(config, seed=1)
    theirs.load_state_dict(ours.state_dict())
    assert theirs.is_final and torch.equal(theirs.order, ours.order)
    assert_close(theirs(x).dense(), ours(x).dense())
    twin = copy.deepcopy(ours)
    twin.load_state_dict(build(config).state_dict())
    assert not twin.is_final  # and back


def test_evaluation_is_not_what_the_last_training_step_left() -> None:
    router, x = build(PermutationSearch(Comet(5, 2), steps=10)).eval(), rows(9)
    first = router(x).dense()
    router.train()(rows(3))
    assert torch.equal(router.eval()(x).dense(), first)


def test_it_counts_and_costs_once() -> None:
    router, x = build(PermutationSearch(TopK(4, 2, balance=0.5), steps=1)), rows(8)
    model = nn.Sequential(router)
    search_step(model, 1)
    routing = router(x)
    assert_close(aux_loss(model).double(), routing.losses["balance"].float().double())
    assert list(statistics.loads(model)) == ["0"]
    assert int(routing.load().sum()) == 16  # as sparse as its gate
    (routing.weight.sum() + routing.losses["permutation"]).backward()
    assert router.scores.grad is not None and not router.scores.grad.any()


def test_padding_has_no_expert() -> None:
    for config in (PermutationSearch(TopK(4)), PermutationSearch(Comet(4), per_part=True)):
        router, x = build(config), rows(6)
        valid = torch.tensor([True, False, True, True, False, True])
        alone = router(x[valid])
        router.context.valid = valid[None]
        routing = router(x)
        assert not routing.dense()[~valid].any()
        assert_close(routing.dense()[valid], alone.dense())
        assert_close(routing.losses, alone.losses)


def test_noise_is_of_the_search_in_training_alone() -> None:
    quiet, router = (build(PermutationSearch(TopK(4), noise=n)) for n in (0.0, 0.05))
    assert not torch.equal(router.soft(), router.soft())
    plan = router.soft()
    assert_close(plan.sum(-1), torch.ones(1, 4, dtype=torch.float64))
    assert torch.equal(router.eval().soft(), quiet.soft())
    router.train().before_step(100, 100)
    quiet.before_step(100, 100)
    assert torch.equal(router.order, quiet.order)  # what is found is what was learned


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"steps": 0}, "steps"),
        ({"start": 1e-8}, "start, end"),
        ({"end": 0.0}, "end"),
        ({"entropy": -1.0}, "entropy"),
        ({"noise": -1.0}, "noise"),
        ({"gate": RandomRouting()}, "gate"),
        ({"gate": TopK(), "per_part": True}, "per_part"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        PermutationSearch(**settings)


def test_noise_has_the_mean_and_the_spread_of_gumbel_s_distribution() -> None:
    noise = build(PermutationSearch(TopK(100)))._gumbel()
    assert noise.shape == (1, 100, 100)
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.08)
    assert float(noise.std()) == pytest.approx(math.pi / 6**0.5, abs=0.08)
