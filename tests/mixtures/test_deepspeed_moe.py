"""A pyramid of top-1 experts beside MLPs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from intarsia.core.errors import ConfigError
from intarsia.mixtures import Capacity, DeepSpeedMoE, ResidualMixture

from ..refusals import refused

D = 6


def layer(number: int = 0, mix: str = "learned") -> ResidualMixture:
    config = DeepSpeedMoE(experts=(2, 2, 4), mix=mix, least=1)
    return config.build(D, 5, number, generator=torch.Generator().manual_seed(0)).double()


def batch() -> torch.Tensor:
    return torch.randn(2, 9, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_later_layers_have_more_experts() -> None:
    assert [layer(n).mixture.experts.experts for n in range(3)] == [2, 2, 4]
    made = DeepSpeedMoE()
    assert (len(made.experts), made.experts[0], made.experts[-1]) == (12, 32, 64)
    assert made.capacity == Capacity(1.0, "order", 4, 1.0)
    assert (made.router.experts, made.router.active, made.router.scale) == (32, 1, "prob")


def test_coefficients_of_0_are_half_of_each_and_no_experts_leave_the_mlp() -> None:
    made, x = layer(), batch()
    assert made.coefficient is not None
    nn.init.zeros_(made.coefficient.weight)
    assert_close(made(x), (made.mixture(x) + made.mlp(x)) / 2)
    made = layer()
    assert made.coefficient is not None
    nn.init.zeros_(made.mixture.experts.down)
    c = made.coefficient(x).softmax(-1)
    assert_close(made(x), c[..., 1:] * made.mlp(x))


def test_one_expert_and_the_plain_sum_are_two_mlps_side_by_side() -> None:
    config = DeepSpeedMoE(experts=(1,), mix="sum", least=18)
    made = config.build(D, 5, generator=torch.Generator().manual_seed(0)).double()
    x = batch()
    alone = made.mixture.experts.every(x.view(-1, D))[:, 0].view_as(x)
    assert_close(made(x), alone + made.mlp(x))


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({"experts": ()}, "a number for each layer"),
        ({"experts": (2, 0)}, "at least 1"),
        ({"mix": "mean"}, "one of ('learned', 'sum')"),
        ({"factor": -1.0}, "above 0"),
        ({"balance": -1.0}, "at least 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], want: str) -> None:
    with refused(ConfigError, want=want):
        DeepSpeedMoE(**settings)  # pyright: ignore
