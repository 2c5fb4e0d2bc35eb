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
    config = DeepSpeedMoE()
    assert (len(config.experts), config.experts[0], config.experts[-1]) == (12, 32, 64)
    assert config.capacity == Capacity(1.0, "order", 4, 1.0)
    assert (config.router.experts, config.router.active, config.router.scale) == (32, 1, "prob")


def test_coefficients_of_0_are_half_of_each_and_no_experts_leave_the_mlp() -> None:
    mixture, x = layer(), batch()
    assert mixture.coefficient is not None
    nn.init.zeros_(mixture.coefficient.weight)
    assert_close(mixture(x), (mixture.mixture(x) + mixture.mlp(x)) / 2)
    mixture = layer()
    assert mixture.coefficient is not None
    nn.init.zeros_(mixture.mixture.experts.down)
    c = mixture.coefficient(x).softmax(-1)
    assert_close(mixture(x), c[..., 1:] * mixture.mlp(x))


def test_one_expert_and_the_plain_sum_are_two_mlps_side_by_side() -> None:
    config = DeepSpeedMoE(experts=(1,), mix="sum", least=18)
    mixture = config.build(D, 5, generator=torch.Generator().manual_seed(0)).double()
    x = batch()
    alone = mixture.mixture.experts.every(x.view(-1, D))[:, 0].view_as(x)
    assert_close(mixture(x), alone + mixture.mlp(x))


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({"experts": ()}, "a number for each layer"),
        ({"experts": (2, 0)}, "at least 1"),
        ({"mix": "mean"}, "one of learned, sum"),
        ({"factor": -1.0}, "above 0"),
        ({"balance": -1.0}, "at least 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], want: str) -> None:
    with refused(ConfigError, want=want):
        DeepSpeedMoE(**settings)  # pyright: ignore
