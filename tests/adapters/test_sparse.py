"""A cell of fixed entries: its delta equals its addition, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from intarsia.adapters import Sparse, SparseCell
from intarsia.core import Site
from intarsia.core.errors import ConfigError

from ..refusals import refused


def build(config: Sparse, inputs: int = 6, outputs: int = 4, seed: int = 0) -> SparseCell:
    generator = torch.Generator().manual_seed(seed)
    cell = config.build(Site("b.fc1", inputs, outputs), generator=generator).double()
    torch.nn.init.normal_(cell.values, generator=generator)
    return cell


@given(st.floats(0.01, 1), st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_it_equals_the_dense_matrix_with_values_and_gradients(
    density: float, inputs: int, outputs: int, seed: int
) -> None:
    cell = build(Sparse(density), inputs, outputs, seed)
    dense = torch.zeros(outputs, inputs, dtype=torch.float64)
    for place, value in zip(cell.places().tolist(), cell.values.tolist(), strict=True):
        dense[place // inputs, place % inputs] = value
    dense.requires_grad_()
    x = torch.randn(2, 3, inputs, dtype=torch.float64)
    weight = torch.randn(2, 3, outputs, dtype=torch.float64)
    assert_close(cell(x), x @ dense.T)
    assert_close(cell.delta(), dense)
    (cell(x) * weight).sum().backward()
    (x @ dense.T * weight).sum().backward()
    assert dense.grad is not None
    assert_close(cell.values.grad, dense.grad.flatten()[cell.places()])
    count = max(1, round(density * inputs * outputs))
    assert cell.values.shape == (count,)
    assert len(cell.places().unique()) == count and cell.places().dtype == torch.int64


def test_a_new_cell_adds_nothing_and_its_places_depend_on_the_seed() -> None:
    cells = [
        Sparse(0.2).build(Site("b", 8, 8), generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert not cells[0](torch.randn(2, 8)).any()
    assert torch.equal(cells[0].index, cells[1].index)
    assert not torch.equal(cells[0].index, cells[2].index)


def test_places_are_saved_and_not_trained() -> None:
    cell = build(Sparse(0.5))
    assert set(cell.state_dict()) == {"index", "values"}
    assert [n for n, _ in cell.named_parameters()] == ["values"]
    assert cell.half().index.dtype == torch.int64


def test_all_entries_need_no_places() -> None:
    cell = build(Sparse(1.0))
    assert cell.full and not len(cell.index) and cell.places().tolist() == list(range(24))
    assert_close(cell.delta().flatten(), cell.values)


def test_named_sites_have_their_own_number() -> None:
    config = Sparse(entries=["b.fc1=3", "c=0"])  # pyright: ignore[reportArgumentType]
    assert config.counts() == {"b.fc1": 3, "c": 0}
    assert build(config).values.shape == (3,)
    none = config.build(Site("c", 2, 2), generator=torch.Generator())
    assert none(torch.ones(1, 2)).tolist() == [[0, 0]] and not none.full


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ({"density": 0.0}, "0.0"),
        ({"density": 1.5}, "1.5"),
        ({"entries": ("fc1",)}, "'fc1'"),
        ({"entries": ("a=1", "a=2")}, "'a=2'"),
        ({"entries": ("a=-1",)}, "'a=-1'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], got: str) -> None:
    with refused(ConfigError, got=got):
        Sparse(**settings)  # pyright: ignore


def test_more_entries_than_the_weight_has_are_refused() -> None:
    with refused(ConfigError, what="entries of 'b.fc1'", got=25):
        build(Sparse(entries=("b.fc1=25",)))


def test_a_cell_can_be_built_without_memory() -> None:
    with torch.device("meta"):
        cell = Sparse(0.5).build(Site("b", 6, 6), generator=torch.Generator())
    assert cell.values.is_meta and cell.index.is_meta
