"""The kernel of blocks of integers against its twin, in every build and at odd sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ShapeError
from intarsia.formats import BlockInt
from intarsia.kernels import native
from intarsia.kernels.blockint import naive_blockint

from ..toys import drawn
from .counts import on_threads

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
SIZES = ((1, 1), (16, 32), (17, 33), (5, 100), (50, 300), (0, 5), (3, 64))
BATCHES = (1, 2, 3, 8, 15)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", SIZES)
def test_it_gives_what_its_twin_gives(size: tuple[int, int], bits: int, build: str) -> None:
    form, weight = BlockInt(bits), drawn(*size)
    stored = form.encode(weight)
    for batch in BATCHES:
        x = drawn(batch, size[1], seed=batch)
        want = naive_blockint(x, stored["codes"], stored["scales"], size[0], bits)
        got = form.matmul(x, stored, size)
        scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
        assert_close(got, want, atol=3e-6 * scale, rtol=1e-5)
        bound = form.bound(stored, size)
        assert size[0] == 0 or torch.equal(bound(x), got)
    assert form.matmul(drawn(0, size[1]), stored, size).shape == (0, size[0])


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_at_their_ends_do_not_overflow(bits: int, build: str) -> None:
    size, form = (16, 64), BlockInt(bits)
    stored = form.encode(drawn(*size))
    x = torch.ones(1, 64)
    x[0, ::2] = -1
    for code in (0, 255):
        extreme = stored | {"codes": torch.full_like(stored["codes"], code)}
        extreme["codes"][:, :, :, ::3] = 255 - code
        for inputs in (x, x.abs(), -x.abs()):
            want = inputs @ form.decode(extreme, size).T
            assert_close(form.matmul(inputs, extreme, size), want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_any_number_of_threads_gives_the_same_bits(bits: int, build: str) -> None:
    size, form = (400, 1000), BlockInt(bits)
    stored, x = form.encode(drawn(*size)), drawn(3, 1000)
    results: list[Tensor] = []
    for _ in on_threads(1, 2, 5):
        results.append(form.matmul(x, stored, size))
    assert all(torch.equal(y, results[0]) for y in results)


def test_a_row_that_is_not_finite_is_nan_and_no_other(build: str) -> None:
    form, weight = BlockInt(), drawn(9, 70)
    x = drawn(3, 70)
    x[0, 3], x[2, 69] = math.inf, math.nan
    y = form.matmul(x, form.encode(weight), weight.shape)
    assert y[0].isnan().all() and y[1].isfinite().all() and y[2].isnan().all()
    tiny = form.matmul(torch.full((1, 70), 1e-40), form.encode(weight), weight.shape)
    assert not tiny.isnan().any() and float(tiny.abs().max()) < 1e-36


def test_tensors_that_do_not_fit_are_refused(build: str) -> None:
    form, weight = BlockInt(), drawn(9, 70)
    stored = form.encode(weight)
    for name, bad in (
        ("codes", stored["codes"][:, :1]),
        ("codes", stored["codes"].char()),
        ("scales", stored["scales"].bfloat16()),
        ("scales", stored["scales"][..., :8]),
    ):
        with pytest.raises(ShapeError):
            form.matmul(drawn(1, 70), stored | {name: bad}, weight.shape)
