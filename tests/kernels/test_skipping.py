"""The kernel that leaves out columns against its twin, in every build and at odd sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ShapeError
from intarsia.kernels import native
from intarsia.kernels.blockint import rounded
from intarsia.kernels.skipping import bound, columnwise, naive_skipping, rowwise

from ..toys import drawn
from .counts import on_threads

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
SIZES = ((1, 1), (64, 32), (65, 33), (130, 100), (192, 300), (576, 64), (1100, 40))


def stored(out: int, width: int, limit: float) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and scales that are drawn, by column."""
    rows, blocks = -(-out // 64) * 64, -(-width // 32)
    made = torch.Generator().manual_seed(out)
    codes = torch.randint(0, 16, (rows, blocks, 32), dtype=torch.uint8, generator=made)
    scales = torch.rand(rows, blocks, generator=made).half()
    return *columnwise(codes, scales), torch.tensor([limit])


@pytest.mark.parametrize("limit", [-1.0, 0.0, 0.5, 9.0])
@pytest.mark.parametrize("size", SIZES)
def test_it_gives_what_its_twin_gives(size: tuple[int, int], limit: float, build: str) -> None:
    weight = stored(*size, limit)
    for batch in (1, 3):
        x = drawn(batch, size[1], seed=batch)
        want = naive_skipping(x, *weight, size[0])
        product = bound(*weight, size)
        assert product is not None
        assert_close(product(x), want, atol=3e-6 * max(1.0, float(want.abs().max())), rtol=1e-5)


def test_the_twin_is_the_product_with_what_is_kept() -> None:
    made = torch.Generator().manual_seed(0)
    for rows in (64, 128, 320, 512, 1216):
        codes = torch.randint(0, 16, (rows, 2, 32), dtype=torch.uint8, generator=made)
        scales = torch.rand(rows, 2, generator=made).half()
        there = columnwise(codes, scales)
        assert all(map(torch.equal, rowwise(*there, 2), (codes, scales)))
        x = drawn(2, 64)
        q, steps = rounded(torch.where(x.abs() > 0.7, x, 0))
        weight = (codes.float() - 8) * scales.float()[..., None]
        want = (q * steps[..., None]).flatten(1) @ weight.flatten(1).T
        got = naive_skipping(x, *there, torch.tensor([0.7]), rows)
        assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_any_number_of_threads_gives_the_same_bits(build: str) -> None:
    weight, x = stored(1000, 1000, 0.5), drawn(2, 1000)
    results: list[Tensor] = []
    for _ in on_threads(1, 2, 5):
        product = bound(*weight, (1000, 1000))
        assert product is not None
        results.append(product(x))
    assert all(torch.equal(y, results[0]) for y in results)


def test_a_row_that_is_not_finite_is_nan_and_no_other(build: str) -> None:
    x = drawn(3, 70)
    x[0, 3], x[2, 69] = math.inf, math.nan
    product = bound(*stored(70, 70, 0.5), (70, 70))
    assert product is not None
    y = product(x)
    assert y[0].isnan().all() and y[1].isfinite().all() and y[2].isnan().all()


def test_tensors_that_do_not_fit_are_refused() -> None:
    codes, scales, limit = stored(70, 70, 0.5)
    for bad in (
        (codes[2:], scales, limit),
        (codes, scales.float(), limit),
        (codes, scales, torch.zeros(2)),
        (codes, scales.repeat_interleave(2)[::2], limit),
    ):
        with pytest.raises(ShapeError, match="by column"):
            bound(*bad, (70, 70))
