"""ReLU routing: as many experts as are above 0, and a loss that drives their number to k."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from intarsia.core.errors import ConfigError
from intarsia.fitting import fit
from intarsia.gating import join
from intarsia.mixtures import Mixture, StackedExperts
from intarsia.routers.relu import ReMoe, ReMoeRouter
from intarsia.train import Interrupted

from ..refusals import refused

WIDTH = 5


def built(config: ReMoe, seed: int = 0) -> ReMoeRouter:
    return config.build(WIDTH, generator=torch.Generator().manual_seed(seed)).double()


def rows(count: int = 40, seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, dtype=torch.float64, generator=draw)


def loss_naive(config: ReMoe, gates: Tensor, strength: float) -> Tensor:
    """lambda / T sum_t sum_e f_e R_te with f_e = E / (k T) sum_t [R_te > 0], term by term."""
    total = gates.new_zeros(())
    for expert in range(config.experts):
        tokens = sum(bool(gate > 0) for gate in gates[:, expert])
        f = config.experts / (config.active * len(gates)) * tokens
        for gate in gates[:, expert]:
            total = total + f * gate
    return strength * total / len(gates)


@given(st.integers(1, 6), st.integers(0, 99))
def test_weights_are_the_logits_above_zero(experts: int, seed: int) -> None:
    router, x = built(ReMoe(experts, 1), seed), rows()
    assert_close(router(x).dense(), (x @ router.weight.T).clamp(min=0))


def test_the_loss_and_its_gradient_are_those_of_the_sum() -> None:
    config = ReMoe(4, 2, coefficient=0.3)
    router, x = built(config), rows()
    ours = router.train()(x).losses["l1"]
    theirs = loss_naive(config, (x @ router.weight.T).relu(), 0.3)
    assert_close(ours, theirs)
    grads = [
        torch.autograd.grad(loss, router.weight, retain_graph=True)[0] for loss in (ours, theirs)
    ]
    assert_close(*grads)


def test_lambda_grows_while_tokens_have_more_than_k_experts() -> None:
    router = built(ReMoe(4, 1, coefficient=1e-3, factor=1.5)).train()
    router(rows())  # half of the experts are above 0
    router.before_step(1, 9)
    assert_close(float(router.strength()), 1.5e-3)
    with torch.no_grad():
        router.weight.zero_()  # nobody is
    router(rows())
    router.before_step(2, 9)
    router.before_step(3, 9)  # no row was seen since: nothing changes
    assert_close(float(router.strength()), 1e-3)


@pytest.mark.parametrize(("coefficient", "experts"), [(0.1, 2), (1e-30, 8)])
def test_training_reaches_k_experts_a_token(coefficient: float, experts: int) -> None:
    # the second coefficient never grows to anything: without the loss all experts are wanted
    router, x = built(ReMoe(8, 2, coefficient, 1.05)).train(), rows(400)
    x[:, 0] = 1  # around 0 a plane through 0 has half of the tokens above it, whatever its slope
    draw = torch.Generator().manual_seed(2)
    target = torch.randn(400, 8, dtype=torch.float64, generator=draw).abs()
    optimizer, shares = torch.optim.Adam(router.parameters(), 0.01), list[float]()
    for step in range(400):
        router.before_step(step, 400)
        routing = router(x)
        loss = (routing.dense() - target).square().mean() + routing.losses["l1"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shares.append(len(routing.token) / len(x))
    assert shares[0] > 3 and abs(sum(shares[-200:]) / 200 - experts) < 0.5


def test_the_sparsity_is_that_of_all_layers_together() -> None:
    layers = [built(ReMoe(4, 2, factor=2.0), seed).train() for seed in range(3)]
    join(nn.ModuleList(layers))
    with torch.no_grad():  # layers of 4, 4 and 0 experts a token: 2.7 on average, above 2
        for router, sign in zip(layers, (1, 1, -1), strict=True):
            router.weight.fill_(sign)
    twins = copy.deepcopy(layers)
    for router in layers:
        router(rows().abs())
    for router in layers:
        router.before_step(1, 2)
    assert [int(router.growth) for router in layers] == [1, 1, 1]
    assert [int(router.growth) for router in twins] == [0, 0, 0]
    assert twins[2].layers[0] is twins[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_has_the_same_lambda(dtype: torch.dtype) -> None:
    router = built(ReMoe(4, 1)).to(dtype).train()
    for step in range(4):
        router(rows().to(dtype))
        router.before_step(step, 9)
    router(rows().to(dtype))  # saved between a forward and the step that follows
    again = built(ReMoe(4, 1), seed=5).to(dtype).train()
    again.load_state_dict(router.state_dict())
    for gate in (router, again):
        gate.before_step(5, 9)
    assert int(again.growth) == int(router.growth) == 5
    assert again.strength() == router.strength()


def network() -> nn.Sequential:
    draws = torch.Generator().manual_seed(0)
    experts = StackedExperts(4, WIDTH, 8, generator=draws)
    mixture = Mixture(experts, ReMoe(4, 1).build(WIDTH, generator=draws))
    head = nn.utils.skip_init(nn.Linear, WIDTH, 3)
    for parameter in head.parameters():
        nn.init.normal_(parameter, generator=draws)
    return nn.Sequential(mixture, head)


def stop_at(last: int) -> Any:
    def schedule(model: nn.Module, step: int, steps: int) -> None:
        if step == last:
            raise KeyboardInterrupt

    return schedule


def test_fit_moves_lambda_and_a_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    data = TensorDataset(rows(40).float(), torch.arange(40) % 3)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.05, "seed": 0}
    full, again = network(), network()
    fit(full, data, **options)
    assert int(full.get_buffer("0.router.growth")) != 0

    options |= {"out": tmp_path, "checkpoint_steps": 1}
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        fit(again, data, schedule=stop_at(6), **options)
    again = network()
    fit(again, data, schedule=stop_at(99), resume=True, **options)
    for ours, theirs in zip(again.state_dict().values(), full.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_token_without_an_expert_adds_nothing() -> None:
    experts = StackedExperts(4, WIDTH, 3, generator=torch.Generator().manual_seed(0)).double()
    router = built(ReMoe(4, 2))
    layer, x = Mixture(experts, router), rows(6)
    x[2] = 0
    y = layer(x)
    assert not bool(y[2].any()) and bool(y[[0, 1, 3, 4, 5]].any(1).any())
    with torch.no_grad():
        router.weight.zero_()
    assert not bool(layer(x).any())


def test_padding_counts_neither_for_the_loss_nor_for_the_sparsity() -> None:
    x, valid = rows(6), torch.tensor([[True, True, False, True, False, False]])
    padded, alone = built(ReMoe(4, 2)).train(), built(ReMoe(4, 2)).train()
    padded.context.valid = valid
    assert_close(padded(x).losses["l1"], alone(x[valid[0]]).losses["l1"])
    assert torch.equal(padded.seen, alone.seen) and int(padded.seen[1]) == 3
    padded.context.valid = torch.zeros_like(valid)
    assert not padded(x).losses


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"experts": 0}, "experts"),
        ({"active": 9}, "active"),
        ({"coefficient": 0.0}, "coefficient"),
        ({"factor": 0.5}, "factor"),
        ({"std": -1.0}, "std"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        ReMoe(**settings)
