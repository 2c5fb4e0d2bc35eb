"""Convpass: a convolution over the patches; other tokens are images of one pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from intarsia.adapters.convpass import Convpass, ConvpassCell
from intarsia.core import Site
from intarsia.core.errors import ConfigError, ShapeError

from ..refusals import refused


def build(width: int = 4, seed: int = 0, **settings: Any) -> ConvpassCell:
    config = Convpass(width, dropout=0.0, **settings)
    generator = torch.Generator().manual_seed(seed)
    return config.build(Site("b.mlp", 6, 5), generator=generator)


def stirred(**settings: Any) -> ConvpassCell:
    cell = build(**settings).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in cell.parameters():
            p += 0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return cell


def by_hand(cell: Any, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The definition, pixel by pixel: sums over the neighbours that are there."""
    act = lambda v: v * torch.sigmoid(1.702 * v)  # noqa: E731
    inner = act(x @ cell.down.weight.T + cell.down.bias)
    other, weight = x.shape[1] - rows * columns, cell.conv.weight
    found = torch.empty_like(inner)
    for t in range(x.shape[1]):
        found[:, t] = inner[:, t] @ weight[:, :, 1, 1].T + cell.conv.bias
        if t < other:
            continue
        row, column = divmod(t - other, columns)
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                near = 0 <= row + i < rows and 0 <= column + j < columns
                if near and (i or j):
                    place = other + (row + i) * columns + column + j
                    found[:, t] += inner[:, place] @ weight[:, :, 1 + i, 1 + j].T
    return cell.config.scale * (act(found) @ cell.up.weight.T + cell.up.bias)


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_it_is_a_convolution_of_the_patches_alone(rows: int, columns: int, other: int) -> None:
    cell = stirred(scale=0.1, grid=(rows, columns))
    x = torch.randn(2, other + rows * columns, 6, dtype=torch.float64)
    assert_close(cell(x), by_hand(cell, x, rows, columns))


@pytest.mark.parametrize(("tokens", "side"), [(1, 1), (5, 2), (16, 4), (17, 4), (21, 4), (54, 7)])
def test_the_grid_is_the_largest_square(tokens: int, side: int) -> None:
    cell, x = stirred(), torch.randn(2, tokens, 6, dtype=torch.float64)
    assert_close(cell(x), by_hand(cell, x, side, side))
    map_ = x[:, tokens - side * side :].unflatten(1, (side, side))  # as a host of maps gives it
    assert_close(cell(map_).flatten(1, 2), cell(x)[:, tokens - side * side :])
    assert_close(cell(x[:, 0]), cell(x[:, :1])[:, 0])


def test_the_class_token_alone_is_what_it_is_among_all() -> None:
    x = torch.randn(2, 17, 6, dtype=torch.float64)
    for cell in (stirred(), stirred(grid=(4, 4))):
        assert_close(cell(x[:, :1]), cell(x)[:, :1])


def test_a_new_cell_adds_nothing_and_its_convolution_is_the_identity() -> None:
    cell, x = build(), torch.randn(3, 10, 6)
    assert not cell(x).any()
    inner = torch.randn(3, 10, 4)
    assert_close(cell._convolved(inner), inner)


def test_the_generator_decides_the_start() -> None:
    a, b, c = (build(seed=seed).down.weight for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_what_cannot_be_is_refused() -> None:
    with refused(ConfigError, what="width", got=0):
        Convpass(0)
    with refused(ConfigError, what="grid", got=(0, 2)):
        Convpass(grid=(0, 2))
    with refused(ShapeError, what="grid of Convpass"):
        stirred(grid=(5, 4))(torch.randn(1, 17, 6, dtype=torch.float64))
