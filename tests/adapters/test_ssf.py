"""SSF: y' = gamma * y + beta, initially the identity, or the released start."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from intarsia.adapters import Ssf, SsfCell
from intarsia.core import Site
from intarsia.core.errors import ConfigError

from ..refusals import refused


def build(config: Ssf, inputs: int = 6, outputs: int = 4, seed: int = 0) -> SsfCell:
    generator = torch.Generator().manual_seed(seed)
    return config.build(Site("b.fc1", inputs, outputs, config.position), generator=generator)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))
def test_the_layer_with_its_cell_gives_gamma_y_plus_beta(
    inputs: int, outputs: int, seed: int
) -> None:
    cell = build(Ssf(std=0.5), inputs, outputs, seed).double()
    y = torch.randn(2, 3, outputs, dtype=torch.float64)
    gamma, beta = 1 + cell.scale, cell.shift
    assert_close(y + cell(y), gamma * y + beta)
    scale, shift = cell.affine()
    assert_close(cell(y), scale * y + shift)
    assert cell.delta() is None


def test_a_new_cell_adds_nothing_and_both_parts_can_learn() -> None:
    cell = build(Ssf())
    y = torch.randn(2, 4)
    assert not cell(y).any()
    cell(y).square().sum().backward()
    assert cell.scale.grad is not None and not cell.scale.grad.any()  # of nothing, squared
    (1 + cell(y)).square().sum().backward()
    assert cell.scale.grad.all() and cell.shift.grad is not None and cell.shift.grad.all()


def test_the_released_start_is_normal_around_the_identity() -> None:
    cell = build(Ssf(std=0.02), outputs=20_000)
    for parameter in (cell.scale.detach(), cell.shift.detach()):
        assert abs(float(parameter.mean())) < 1e-3 and abs(float(parameter.std()) - 0.02) < 1e-3
    assert not torch.equal(cell.scale, cell.shift)


def test_the_generator_decides_the_start() -> None:
    a, b, c = (build(Ssf(std=0.1), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.scale, b.scale) and not torch.equal(a.scale, c.scale)


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_bad_settings_are_refused(std: float) -> None:
    with refused(ConfigError, what="std", want="at least 0"):
        Ssf(std=std)


def test_roles_may_come_as_a_list() -> None:
    assert Ssf(roles=["norm"]).roles == ("norm",)  # pyright: ignore
    assert Ssf().position == "sequential"
