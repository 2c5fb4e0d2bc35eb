"""Switch routing: one expert, so many tokens each while training, all of them in evaluation."""

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
from intarsia.routers import Switch
from intarsia.routers.switch import SwitchRouter

from ..refusals import refused
from ..toys import rows


def build(config: Switch) -> SwitchRouter:
    router = config.build(5, generator=torch.Generator().manual_seed(0)).double()
    torch.nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(1))
    return router


def capped(router: SwitchRouter, x: Tensor, room: int) -> Tensor:
    """The oracle: token by token, while there is room."""
    probs = (x @ router.weight.T).softmax(-1)
    gates, counts = torch.zeros_like(probs), [0] * router.experts
    for t, best in enumerate(probs.argmax(-1).tolist()):
        if counts[best] < room:
            gates[t, best] = probs[t, best]
            counts[best] += 1
    return gates


@given(st.integers(1, 5), st.integers(0, 11), st.floats(0.1, 3.0), st.integers(0, 99))
def test_an_expert_takes_its_first_tokens(
    experts: int, count: int, capacity: float, seed: int
) -> None:
    router, x = build(Switch(experts, capacity)), rows(count, seed)
    room = math.ceil(capacity * count / experts)
    assert_close(router(x).dense(), capped(router, x, room))
    assert_close(router.eval()(x).dense(), capped(router, x, count))


def test_padding_takes_no_room_and_counts_for_none() -> None:
    router, x = build(Switch(2, 1.0)), rows(8)
    valid = torch.tensor([[True, False] * 4])
    router.context.valid = valid
    got = router(x).dense()
    assert not got[~valid[0]].any()
    assert_close(got[valid[0]], capped(router, x[valid[0]], 2))


def test_dropped_tokens_count_in_the_balance_loss() -> None:
    dropping, all_ = build(Switch(3, 0.3)), build(Switch(3, 9.0))
    x = rows(12)
    assert dropping(x).load().sum() < 12
    for name in ("balance", "z"):
        assert_close(dropping(x).losses[name], all_(x).losses[name])


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
        Switch(**settings)
