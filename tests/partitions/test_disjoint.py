"""Laws of random disjoint partitions: disjoint, covering, balanced to one, seeded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from intarsia.core.errors import ConfigError, ShapeError
from intarsia.core.partition import label_dtype
from intarsia.partitions import random_disjoint
from intarsia.partitions.disjoint import UNITS

from ..refusals import refused

Matrices = st.tuples(st.integers(0, 9), st.integers(0, 9))
Shapes = st.one_of(Matrices, st.tuples(st.integers(0, 30)))
Parts = st.integers(1, 40)
Seeds = st.integers(0, 2**31)


def deal(shape: tuple[int, ...], parts: int, unit: str = "element", seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return random_disjoint({"w": shape}, parts, generator=generator, unit=unit)["w"]


def assert_even(labels: Tensor, parts: int) -> None:
    counts = torch.bincount(labels.flatten().long(), minlength=parts)
    assert int(counts.max()) - int(counts.min()) <= 1


@pytest.mark.parametrize("unit", UNITS)
@given(shape=Shapes, parts=Parts, seed=Seeds)
def test_every_weight_has_exactly_one_owner(
    unit: str, shape: tuple[int, ...], parts: int, seed: int
) -> None:
    label = deal(shape, parts, unit, seed)
    assert label.shape == shape
    assert label.dtype == label_dtype(parts)
    if label.numel():
        assert int(label.min()) >= 0
        assert int(label.max()) < parts


@pytest.mark.parametrize("unit", ["element", "row", "column"])
@given(shape=Shapes, parts=Parts, seed=Seeds)
def test_parts_own_equally_many_weights_to_one(
    unit: str, shape: tuple[int, ...], parts: int, seed: int
) -> None:
    assert_even(deal(shape, parts, unit, seed), parts)


@given(shape=Matrices, parts=Parts, seed=Seeds)
def test_stratified_parts_are_even_in_every_row_or_column(
    shape: tuple[int, int], parts: int, seed: int
) -> None:
    for row in deal(shape, parts, "row", seed):
        assert_even(row, parts)
    for column in deal(shape, parts, "column", seed).T:
        assert_even(column, parts)


@given(shape=Matrices, parts=Parts, seed=Seeds)
def test_whole_rows_and_columns_have_one_owner_and_are_dealt_evenly(
    shape: tuple[int, int], parts: int, seed: int
) -> None:
    rows, columns = shape
    by_row = deal(shape, parts, "whole_row", seed)
    by_column = deal(shape, parts, "whole_column", seed)
    if rows and columns:
        assert torch.equal(by_row, by_row[:, :1].expand(shape))
        assert torch.equal(by_column, by_column[:1].expand(shape))
        assert_even(by_row[:, 0], parts)
        assert_even(by_column[0], parts)


@pytest.mark.parametrize("unit", UNITS)
@given(shape=Shapes, parts=Parts, seed=Seeds)
def test_a_seed_gives_the_same_partition_again(
    unit: str, shape: tuple[int, ...], parts: int, seed: int
) -> None:
    assert torch.equal(deal(shape, parts, unit, seed), deal(shape, parts, unit, seed))


@pytest.mark.parametrize("unit", UNITS)
def test_another_seed_gives_another_partition(unit: str) -> None:
    assert not torch.equal(deal((16, 16), 4, unit, 0), deal((16, 16), 4, unit, 1))


@pytest.mark.parametrize("unit", UNITS)
@given(shape=Shapes, seed=Seeds)
def test_one_part_owns_all(unit: str, shape: tuple[int, ...], seed: int) -> None:
    assert not deal(shape, 1, unit, seed).any()


@pytest.mark.parametrize("unit", UNITS)
def test_parts_beyond_the_weights_stay_empty(unit: str) -> None:
    partition = random_disjoint(
        {"w": (3, 2)}, 300, generator=torch.Generator().manual_seed(0), unit=unit
    )
    sizes = partition.sizes()
    assert int(sizes.sum()) == 6
    assert int((sizes > 0).sum()) == {"whole_row": 3, "whole_column": 2}.get(unit, 6)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (7, 1), (1, 7)])
def test_every_weight_is_as_likely_to_go_to_any_part(unit: str, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    draws, parts = 800, 4
    counts = torch.zeros(parts, *shape)
    for _ in range(draws):
        label = random_disjoint({"w": shape}, parts, generator=generator, unit=unit)["w"]
        counts += torch.stack([label == part for part in range(parts)])
    expected = draws / parts
    # 4.5 standard deviations of a binomial count
    assert float((counts - expected).abs().max()) < 4.5 * (expected * (1 - 1 / parts)) ** 0.5


@pytest.mark.parametrize("unit", ["row", "whole_row"])
def test_rows_have_no_period(unit: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = [
        random_disjoint({"w": (8, 1)}, 4, generator=generator, unit=unit)["w"].flatten()
        for _ in range(400)
    ]
    # one more of the same part among the 7 other rows: 1 / 7
    same = torch.stack([label[0] == label[4] for label in labels]).float().mean()
    assert abs(float(same) - 1 / 7) < 0.08


def test_every_row_is_shuffled_apart() -> None:
    label = deal((40, 8), 4, "row")
    assert len(label.unique(dim=0)) > 35
    assert len(deal((8, 40), 4, "column").unique(dim=1).T) > 35


def test_parameters_are_dealt_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    partition = random_disjoint({"a": (8, 8), "b": (8, 8), "c": (64,)}, 4, generator=generator)
    assert not torch.equal(partition["a"], partition["b"])
    assert partition.sizes().tolist() == [48, 48, 48, 48]
    assert partition.density() == 1.0


def test_a_tensor_of_any_rank_is_dealt_by_element() -> None:
    assert_even(deal((2, 3, 4), 5), 5)
    assert deal((), 3).shape == ()


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit != "element"])
@pytest.mark.parametrize("shape", [(2, 3, 4), ()])
def test_rows_need_a_vector_or_a_matrix(unit: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="want a vector or a matrix. Use unit='element'"):
        deal(shape, 2, unit)


def test_bad_settings_are_refused() -> None:
    with refused(ConfigError, what="parts", got=0):
        deal((2, 2), 0)
    with refused(ConfigError, what="unit", got="'block'"):
        deal((2, 2), 2, "block")
