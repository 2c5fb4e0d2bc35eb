"""Exactly n of each m, exactly so many blocks, and always those of the largest scores."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from intarsia.core import Blocks, NofM
from intarsia.core.errors import ConfigError, DataError, ShapeError
from intarsia.partitions import keep_blocks, keep_n_of_m, keep_rows
from intarsia.partitions.patterns import largest

from ..refusals import refused

sides = st.integers(1, 3)


def drawn(*shape: int, seed: int) -> Tensor:
    # few values, so that there are ties
    return torch.randint(4, shape, generator=torch.Generator().manual_seed(seed)).float()


@given(sides, sides, st.integers(1, 4), st.integers(1, 4), st.integers(0, 99), st.booleans())
def test_n_of_m_are_the_largest_of_each_group(
    rows: int, columns: int, m: int, n: int, seed: int, across: bool
) -> None:
    n, score = min(n, m), drawn(rows * m, columns * m, seed=seed)
    part = keep_n_of_m({"w": score}, n, m, axis=0 if across else -1)
    part.check()
    mask = part.mask("w", 0)
    lines, groups = (score.T, mask.T) if across else (score, mask)
    for line, row in zip(lines.tolist(), groups.tolist(), strict=True):
        for start in range(0, len(line), m):
            group = range(start, start + m)
            want = sorted(group, key=lambda i: (-line[i], i))[:n]  # of equal ones the first
            assert [i for i in group if row[i]] == sorted(want)


@given(sides, st.integers(1, 9), st.floats(0, 1), st.integers(0, 99))
def test_each_row_keeps_as_many_of_its_largest(
    rows: int, columns: int, density: float, seed: int
) -> None:
    score = drawn(rows, columns, seed=seed)
    part = keep_rows({"w": score}, density)
    mask = part.mask("w", 0)
    count = columns - int((1 - density) * columns + 1e-6)
    assert part.pattern == (NofM(count, columns) if count else None)
    for line, row in zip(score.tolist(), mask.tolist(), strict=True):
        want = sorted(range(columns), key=lambda i: (-line[i], i))[:count]
        assert [i for i in range(columns) if row[i]] == sorted(want)


@given(sides, sides, sides, sides, st.integers(0, 99), st.data())
def test_blocks_are_those_of_the_largest_sums(
    r: int, c: int, height: int, width: int, seed: int, data: st.DataObject
) -> None:
    scores = {n: drawn(r * height, c * width, seed=seed) for n in ("a", "b")}
    count = data.draw(st.integers(0, 2 * r * c))
    part = keep_blocks(scores, count, Blocks(height, width))
    part.check()
    tiles = [
        (float(score[i : i + height, j : j + width].sum()), name, i, j)
        for name, score in scores.items()
        for i in range(0, score.shape[0], height)
        for j in range(0, score.shape[1], width)
    ]
    want = sorted(tiles, key=lambda tile: -tile[0])[:count]
    got = [t for t in tiles if bool(part.mask(t[1], 0)[t[2], t[3]])]
    assert sorted(got) == sorted(want)
    assert int(part.sizes()) == count * height * width


def test_a_convolution_is_out_by_the_rest() -> None:
    score = torch.arange(24.0).view(4, 3, 1, 2)
    part = keep_blocks({"w": score}, 1, Blocks(2, None))
    assert part.mask("w", 0)[2:].all() and int(part.sizes()) == 12


def test_what_cannot_be_is_refused() -> None:
    with refused(ConfigError, what="n", got=3):
        keep_n_of_m({"w": torch.ones(2, 4)}, 3, 2)
    with refused(ShapeError, what="axis -1 of a weight of (2, 6)", got=6):
        keep_n_of_m({"w": torch.ones(2, 6)})
    with refused(DataError, what="scores of 'w'"):
        keep_n_of_m({"w": torch.full((2, 4), torch.nan)})
    with refused(ConfigError, what="count", got=3):
        keep_blocks({"w": torch.ones(2, 4)}, 3, Blocks(1, None))


def sorted_largest(scores: Tensor, count: int) -> Tensor:
    """Select the largest by sorting everything."""
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 9), st.integers(0, 9))
def test_the_largest_are_those_of_a_sort_and_of_equal_ones_the_first(
    rows: int, width: int, count: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(4, (rows, width), generator=draw).float()
    count = min(count, width)
    assert torch.equal(largest(scores, count), sorted_largest(scores, count))
