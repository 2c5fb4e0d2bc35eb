"""CSR rows give back the weight, and are smaller exactly below their break-even."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import ShapeError
from intarsia.core.format import nbytes
from intarsia.formats import Columns
from intarsia.formats.columns import break_even

from ..refusals import refused

shapes = st.sampled_from([(5, 7), (1, 7), (3, 1), (4, 2, 3), (7,), (0, 4), (4, 0)])
dtypes = st.sampled_from([torch.float16, torch.float32, torch.bfloat16, torch.float64])


@given(shapes, dtypes, st.floats(0, 1), st.integers(0, 99))
def test_a_weight_comes_back_to_the_bit(
    shape: tuple[int, ...], dtype: torch.dtype, density: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=draw).to(dtype)
    keep = torch.rand(shape, generator=draw) < density
    stored = Columns().encode(weight, keep)
    assert torch.equal(Columns().decode(stored, shape), weight * keep)
    assert nbytes(stored) == (weight.element_size() + 2) * int(keep.sum()) + 4 * (
        1 + (shape[0] if len(shape) > 1 else 1)
    )


@pytest.mark.parametrize("itemsize", [2, 4])
def test_rows_are_smaller_exactly_below_the_break_even(itemsize: int) -> None:
    rows, width = 50, 64
    dtype = torch.float16 if itemsize == 2 else torch.float32
    even = break_even(width, itemsize)
    assert even == pytest.approx(0.5 - 1 / width if itemsize == 2 else 2 / 3 - 1 / width / 1.5)
    dense = rows * width * itemsize
    for count in range(0, rows * width + 1, 37):
        weight = (torch.arange(rows * width) < count).view(rows, width).to(dtype)
        size = nbytes(Columns().encode(weight)) - 4  # the place of the first row
        assert (size < dense) == (count / (rows * width) < even)


def test_the_widest_row_is_that_of_two_bytes() -> None:
    weight = torch.zeros(2, 65_536)
    weight[1, -1] = 3
    stored = Columns().encode(weight)
    assert torch.equal(Columns().decode(stored, weight.shape), weight)
    with refused(ShapeError, what="weight", got="65,537 columns, 0 kept"):
        Columns().encode(torch.zeros(1, 65_537))


def test_what_does_not_fit_is_refused() -> None:
    weight = torch.eye(3)
    stored: Any = Columns().encode(weight)
    for part, value in (
        ("values", stored["values"][:2]),
        ("columns", torch.tensor([0, 1, 7], dtype=torch.uint16)),
        ("row_offsets", torch.tensor([0, 2, 1, 3], dtype=torch.int32)),
        ("row_offsets", torch.tensor([1, 1, 2, 3], dtype=torch.int32)),
    ):
        with refused(ShapeError, what="rows"):
            Columns().decode({**stored, part: value}, (3, 3))
    with refused(ShapeError, what="rows"):
        Columns().decode(stored, (4, 3))
    with refused(ShapeError, what="keep", got=(3, 2)):
        Columns().encode(weight, torch.ones(3, 2).bool())
