"""Layer densities and masks have exactly the weights that are asked for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import ConfigError
from intarsia.partitions import erdos_renyi, keep_shares, random_masks, uniform

from ..refusals import refused

SHAPES = {"first": (8, 3, 3, 3), "middle": (16, 8, 3, 3), "wide": (64, 64), "head": (10, 64)}


@given(st.floats(0.01, 1))
def test_erdos_renyi_keeps_the_density_of_the_whole(density: float) -> None:
    for kernel in (True, False):
        found = erdos_renyi(SHAPES, density, kernel=kernel)
        total = sum(found[n] * math.prod(s) for n, s in SHAPES.items())
        assert total == pytest.approx(density * sum(math.prod(s) for s in SHAPES.values()))
        assert all(0 <= d <= 1 + 1e-12 for d in found.values())


def test_small_layers_are_denser_by_their_sides() -> None:
    shapes = {"a": (100, 100), "b": (50, 200)}
    found = erdos_renyi(shapes, 0.1)
    assert found["b"] / found["a"] == pytest.approx((250 / 10_000) / (200 / 10_000))
    assert erdos_renyi(SHAPES, 0.6)["first"] == 1  # capped, and the others share the rest


def test_masks_have_exactly_their_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {n: torch.rand(s, generator=generator) for n, s in SHAPES.items()}
    shares = erdos_renyi(SHAPES, 0.3)
    for part in (
        keep_shares(scores, shares),
        random_masks(SHAPES, shares, generator=generator),
    ):
        for name, shape in SHAPES.items():
            assert int(part.mask(name, 0).sum()) == round(shares[name] * math.prod(shape))
    kept = keep_shares(scores, uniform(SHAPES, 0.5)).mask("wide", 0)
    assert scores["wide"][kept].min() >= scores["wide"][~kept].max()


def test_one_seed_is_one_mask() -> None:
    one, two, other = (
        random_masks(SHAPES, uniform(SHAPES, 0.2), generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[n], two[n]) for n in SHAPES)
    assert not torch.equal(one["wide"], other["wide"])


def test_densities_that_cannot_be_are_refused() -> None:
    for make in (erdos_renyi, uniform):
        with refused(ConfigError, what="density", got=2):
            make(SHAPES, 2)
