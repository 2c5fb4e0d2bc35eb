"""A pattern holds where each group keeps to it, and a partition that breaks it is refused."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from intarsia.core import Blocks, NofM, Partition
from intarsia.core.errors import ConfigError, ShapeError
from intarsia.core.pattern import COLUMNS, ROWS

from ..refusals import refused

sides = st.integers(1, 3)


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(2, shape, generator=torch.Generator().manual_seed(seed)).bool()


@given(sides, sides, st.integers(1, 4), st.integers(0, 99), st.sampled_from([0, 1, -1, -2]))
def test_n_of_m_is_counted_group_by_group(
    rows: int, columns: int, m: int, seed: int, axis: int
) -> None:
    mask = drawn((rows * m, columns * m), seed)
    pattern = NofM(1, m, axis)
    lines = mask if axis in (1, -1) else mask.T
    naive = torch.zeros_like(lines)
    for i, line in enumerate(lines):
        for start in range(0, len(line), m):
            naive[i, start : start + m] = int(line[start : start + m].sum()) == 1
    assert torch.equal(pattern.holds(mask), naive if axis in (1, -1) else naive.T)
    assert torch.equal(pattern.restored(pattern.groups(mask)), mask)


@given(sides, sides, sides, sides, st.integers(0, 99))
def test_blocks_are_whole_or_empty(r: int, c: int, height: int, width: int, seed: int) -> None:
    mask, pattern = drawn((r * height, c * width), seed), Blocks(height, width)
    naive = torch.zeros_like(mask)
    for i in range(0, r * height, height):
        for j in range(0, c * width, width):
            block = mask[i : i + height, j : j + width]
            naive[i : i + height, j : j + width] = bool(block.all() or not block.any())
    assert torch.equal(pattern.holds(mask), naive)
    assert torch.equal(pattern.restored(pattern.groups(mask), mask.shape), mask)


def test_rows_and_columns_are_blocks_of_all_there_is() -> None:
    mask = torch.tensor([[True, True], [False, True]])
    assert ROWS.holds(mask).tolist() == [[True, True], [False, False]]
    assert COLUMNS.holds(mask).tolist() == [[False, True], [False, True]]
    assert ROWS.holds(mask.view(2, 2, 1, 1)).shape == (2, 2, 1, 1)  # a convolution
    assert not ROWS.holds(mask[1]).any() and COLUMNS.holds(mask[1]).all()  # a vector is a row
    assert ROWS.holds(mask[:0]).shape == (0, 2)


def test_a_partition_proves_its_pattern() -> None:
    label = torch.tensor([[0, -1, 1, 1], [0, 0, -1, 1]])
    partition = Partition({"w": label}, 2)
    with refused(ConfigError, what="pattern of 'w'", got="part 0, which breaks it at (1, 0)"):
        Partition({"w": label}, 2, NofM(1, 4))
    assert partition.pattern is None
    right = Partition.from_masks({"w": torch.eye(2).bool()}, pattern=NofM(1, 2, axis=0))
    right.check()
    right.label["w"][0, 0] = -1  # type: ignore[index]
    with refused(ConfigError, what="pattern of 'w'", got="part 0, which breaks it at (0, 0)"):
        right.check()


def test_what_cannot_be_is_refused() -> None:
    with refused(ConfigError, what="n", got=5):
        NofM(5, 4)
    with refused(ConfigError, what="rows", got=0):
        Blocks(0)
    with refused(ShapeError, what="axis -1 of a weight of (2, 6)", got=6):
        NofM(2, 4).holds(torch.ones(2, 6, dtype=torch.bool))
    with refused(ShapeError, what="weight", got=(6, 2)):
        Blocks(4, 2).holds(torch.ones(6, 2, dtype=torch.bool))
