"""The kernel of group-sparse int4 against its twin, in every build, and on damaged input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ShapeError
from intarsia.formats import GroupSparse
from intarsia.formats.gqsa import PARTS
from intarsia.kernels import native
from intarsia.kernels.gqsa import BLOCKS, gqsa, naive_gqsa

from ..refusals import refused
from .counts import on_threads

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
SIZES = ((1, 1, 1.0), (5, 3, 0.5), (33, 13, 0.3), (7, 9, 1.0), (0, 2, 0.5), (4, 2, 0.0))
LONG = (40, 300, 0.6)  # rows that go on in the next unit of 1,024 groups, and the one after it


def made(
    rows: int, across: int, density: float, together: int = 1, seed: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """Rows of x, and what is stored; block 1 is empty, and block 2 has all there is (Zipf's head).

    together: rows of a block.
    """
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 16 * across, generator=draw)
    keep = torch.rand(-(-rows // together), across, generator=draw) < density
    keep[1:2], keep[2:3] = False, density > 0
    mask = keep.repeat_interleave(together, 0)[:rows].repeat_interleave(16, 1)
    stored = GroupSparse(rows=together).encode(weight, mask)
    return torch.randn(5, 16 * across, generator=draw), [stored[part] for part in PARTS]


@pytest.mark.parametrize("together", BLOCKS)
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("size", [*SIZES, LONG])
def test_it_gives_what_its_twin_gives(
    size: tuple[int, int, float], integers: bool, together: int, build: str
) -> None:
    x, stored = made(*size, together)
    want = naive_gqsa(x, *stored, integers=integers, rows=together)
    scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    y = gqsa(x, *stored, integers, together)
    assert_close(y, want, atol=3e-6 * scale, rtol=1e-4)
    assert torch.equal(torch.cat([gqsa(row[None], *stored, integers, together) for row in x]), y)
    outputs = -(-size[0] // together) * together
    assert gqsa(x[:0], *stored, integers, together).shape == (0, outputs)


@pytest.mark.parametrize("together", BLOCKS)
@pytest.mark.parametrize("integers", [False, True])
def test_any_number_of_workers_gives_the_same_bits(
    integers: bool, together: int, build: str
) -> None:
    x, stored = made(*LONG, together)
    outputs: list[Tensor] = []
    for _ in on_threads(1, 2, 3, 7):
        outputs.append(gqsa(x, *stored, integers, together))
    assert all(torch.equal(y, outputs[0]) for y in outputs)


@pytest.mark.parametrize("together", BLOCKS)
def test_only_kept_groups_see_what_is_not_finite(together: int, build: str) -> None:
    weight = torch.ones(3, 48)
    keep = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]]).bool().repeat_interleave(16, 1)
    form = GroupSparse(rows=together)
    stored = form.encode(weight.repeat_interleave(together, 0), keep.repeat_interleave(together, 0))
    parts = [stored[part] for part in PARTS]
    x = torch.ones(1, 48)
    x[0, 3], x[0, 20] = math.inf, math.nan
    y = gqsa(x, *parts, rows=together)[0].view(3, together)
    assert (y[0] == math.inf).all() and y[1].isnan().all() and (y[2] - 16).abs().max() < 0.1
    y = gqsa(x, *parts, integers=True, rows=together)[0].view(3, together)
    assert y[:2].isnan().all() and (y[2] - 16).abs().max() < 0.1


@pytest.mark.parametrize("together", BLOCKS)
def test_damaged_tensors_are_refused_and_nothing_outside_is_read(together: int, build: str) -> None:
    x, stored = made(100, 13, 0.5, together)
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
        with refused(ShapeError, fix="Copy the file again."):
            gqsa(x, *bad, rows=together)
    with refused(ShapeError, fix="Copy the file again."):
        gqsa(x, *stored, rows=2)
