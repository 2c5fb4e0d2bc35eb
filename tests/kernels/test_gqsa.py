"""The kernel of group-sparse int4 against its twin, in every build, and on damaged input."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ShapeError
from intarsia.formats import GroupSparse
from intarsia.formats.gqsa import PARTS
from intarsia.kernels import native
from intarsia.kernels.gqsa import gqsa, naive_gqsa

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
SIZES = ((1, 1, 1.0), (5, 3, 0.5), (33, 13, 0.3), (7, 9, 1.0), (0, 2, 0.5), (4, 2, 0.0))
LONG = (40, 300, 0.6)  # rows that go on in the next unit of 1,024 groups, and the one after it


@pytest.fixture(params=["native", "avx2", "portable"])
def build(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.using(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def made(rows: int, across: int, density: float, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """A row of x, and what is stored; row 1 is empty, and row 2 has all there is (Zipf's head)."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 16 * across, generator=draw)
    keep = torch.rand(rows, across, generator=draw) < density
    keep[1:2], keep[2:3] = False, density > 0
    stored = GroupSparse().encode(weight, keep.repeat_interleave(16, 1))
    return torch.randn(2, 16 * across, generator=draw), [stored[part] for part in PARTS]


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("size", [*SIZES, LONG])
def test_it_gives_what_its_twin_gives(
    size: tuple[int, int, float], integers: bool, build: str
) -> None:
    x, stored = made(*size)
    want = naive_gqsa(x, *stored, integers=integers)
    scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    assert_close(gqsa(x, *stored, integers), want, atol=3e-6 * scale, rtol=1e-4)
    assert gqsa(x[:0], *stored, integers).shape == (0, size[0])


@pytest.mark.parametrize("integers", [False, True])
def test_any_number_of_workers_gives_the_same_bits(
    integers: bool, build: str, threads: None
) -> None:
    x, stored = made(*LONG)
    outputs: list[Tensor] = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        outputs.append(gqsa(x, *stored, integers))
    assert all(torch.equal(y, outputs[0]) for y in outputs)


def test_only_kept_groups_see_what_is_not_finite(build: str) -> None:
    weight = torch.ones(3, 48)
    keep = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]]).bool().repeat_interleave(16, 1)
    stored = GroupSparse().encode(weight, keep)
    parts = [stored[part] for part in PARTS]
    x = torch.ones(1, 48)
    x[0, 3], x[0, 20] = math.inf, math.nan
    y = gqsa(x, *parts)[0]
    assert y[0] == math.inf and y[1].isnan() and 15.9 < float(y[2]) < 16.1
    y = gqsa(x, *parts, integers=True)[0]
    assert y[:2].isnan().all() and 15.9 < float(y[2]) < 16.1


def test_damaged_tensors_are_refused_and_nothing_outside_is_read(build: str) -> None:
    x, stored = made(33, 13, 0.5)
    offsets, columns, codes, scales, zeros = stored
    outside = columns.clone()
    outside[-1] = 65_535
    falling = offsets.clone()
    falling[5] = 2**30
    for bad in (
        [offsets, outside, codes, scales, zeros],
        [falling, columns, codes, scales, zeros],
        [offsets, columns, codes[:-1], scales, zeros],
        [offsets, columns, codes, scales.half(), zeros],
        [offsets[:-1], columns, codes, scales, zeros],
    ):
        with pytest.raises(ShapeError, match="Copy the file again"):
            gqsa(x, *bad)
