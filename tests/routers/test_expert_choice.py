"""Expert choice: every expert takes as many tokens, those it likes best."""

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
from intarsia.routers import ExpertChoice
from intarsia.routers.expert_choice import ExpertChoiceRouter

from ..refusals import refused
from ..toys import rows


def build(config: ExpertChoice) -> ExpertChoiceRouter:
    router = config.build(5, generator=torch.Generator().manual_seed(0)).double()
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(1))
    return router


def gates_naive(router: ExpertChoiceRouter, x: Tensor, room: int) -> Tensor:
    """The oracle: expert by expert, its tokens one after the other."""
    probs = (x @ router.weight.T).softmax(-1)
    gates = torch.zeros_like(probs)
    for e in range(router.experts):
        for t in sorted(range(len(x)), key=lambda t: -probs[t, e].item())[:room]:
            gates[t, e] = probs[t, e]
    return gates


@given(st.integers(2, 5), st.integers(0, 11), st.floats(0.1, 6.0), st.integers(0, 99))
def test_each_expert_takes_its_best_tokens(
    experts: int, count: int, capacity: float, seed: int
) -> None:
    router, x = build(ExpertChoice(experts, capacity)), rows(count, seed)
    room = min(count, math.ceil(capacity * count / experts))
    for mode in (True, False):
        routing = router.train(mode)(x)
        assert routing.load().tolist() == [room] * experts
        assert_close(routing.dense(), gates_naive(router, x, room))


def test_gradients_are_those_of_the_naive_twin() -> None:
    router, x = build(ExpertChoice(3, 1.0)), rows(7).requires_grad_()
    scale = rows(7, 5)[:, :3]
    gradients = []
    for gates in (router(x).dense(), gates_naive(router, x, 3)):
        gradients.append(torch.autograd.grad((gates * scale).sum(), [router.weight, x]))
    assert_close(gradients[0], gradients[1])


def test_capacity_of_all_experts_is_the_dense_mixture() -> None:
    router, x = build(ExpertChoice(4, 4.0)), rows(6)
    assert_close(router(x).dense(), (x @ router.weight.T).softmax(-1))


def test_padding_takes_no_place() -> None:
    router, x = build(ExpertChoice(2, 1.0)), rows(8)
    valid = torch.tensor([[True, False] * 4])
    router.context.valid = valid
    got = router(x).dense()
    assert not got[~valid[0]].any()
    assert_close(got[valid[0]], gates_naive(router, x[valid[0]], 2))
    router.context.valid = torch.zeros_like(valid)  # a batch of nothing but padding
    assert not router(x).dense().any()


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"experts": 0}, "0"),
        ({"capacity": 0.0}, "0.0"),
        ({"capacity": float("inf")}, "inf"),
        ({"z": -1.0}, "-1.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], got: str) -> None:
    with refused(ConfigError, got=got):
        ExpertChoice(**settings)
