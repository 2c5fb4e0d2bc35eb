"""Laws of every format: what was stored comes back, multiplies, and is counted as it is."""

from __future__ import annotations

import math

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from intarsia.conformance.cards import CARD_LAWS
from intarsia.conformance.formats import LAWS
from intarsia.conformance.verdict import Law
from intarsia.core import Card, Format, Paper, nbytes
from intarsia.core.errors import ShapeError
from intarsia.formats import Bitmask, BlockInt, Columns, Dense, Gaussian, GroupSparse, RowBlocks

from ..refusals import refused

FORMATS = (
    *(Bitmask(), Bitmask("bf16"), Bitmask("int8"), Columns(), Columns("bf16"), Dense()),
    *(RowBlocks(2), Gaussian(1), Gaussian(3), GroupSparse(), BlockInt(4), BlockInt(8)),
    GroupSparse(rows=4),
)
shapes = st.lists(st.integers(1, 19), min_size=1, max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


def sparse(shape: tuple[int, ...], seed: int, density: float, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (weight * (torch.rand(shape, generator=generator) < density)).to(dtype)


def matmul_naive(x: Tensor, weight: Tensor) -> Tensor:
    """Number by number."""
    rows = [
        [sum(a * b for a, b in zip(r, w, strict=True)) for w in weight.tolist()] for r in x.tolist()
    ]
    return torch.tensor(rows, dtype=x.dtype).view(len(x), len(weight))


@pytest.mark.parametrize("form", FORMATS, ids=repr)
@given(st.integers(1, 9), st.integers(1, 19), st.integers(0, 99), st.floats(0, 1))
def test_a_product_is_that_of_the_decoded_weight(
    form: Format, out: int, width: int, seed: int, density: float
) -> None:
    weight = sparse((out, width), seed, density, torch.float64)
    stored, x = form.encode(weight), sparse((3, width), seed + 1, 1.0, torch.float64)
    decoded = form.decode(stored, weight.shape)
    assert decoded.shape == weight.shape
    want = matmul_naive(x, decoded)
    assert_close(form.matmul(x, stored, weight.shape), want)
    assert_close(form.matmul(x[None], stored, weight.shape), want[None])


@pytest.mark.parametrize("form", FORMATS, ids=repr)
@given(shapes, st.integers(0, 99))
def test_decoding_keeps_what_was_stored(form: Format, shape: tuple[int, ...], seed: int) -> None:
    stored = form.encode(sparse(shape, seed, 0.5, torch.float32))
    once, twice = form.decode(stored, shape), form.decode(stored, shape)
    assert torch.equal(once, twice)


@given(shapes, st.integers(0, 99), st.floats(0, 1), dtypes)
def test_a_bitmask_loses_nothing_and_has_the_bytes_of_what_it_kept(
    shape: tuple[int, ...], seed: int, density: float, dtype: torch.dtype
) -> None:
    weight, form = sparse(shape, seed, density, dtype), Bitmask()
    stored = form.encode(weight)
    back = form.decode(stored, shape)
    assert torch.equal(back, weight) and back.dtype == dtype
    rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, shape[0])
    count = int((weight != 0).sum())
    assert (
        nbytes(stored) == count * weight.element_size() + rows * math.ceil(columns / 8) + 8 * rows
    )
    matrix = weight.view(rows, columns)
    for row, offset in enumerate(stored["row_offsets"].tolist()):  # its weights stand from there on
        mine = matrix[row][matrix[row] != 0]
        assert torch.equal(stored["compressed"][offset : offset + len(mine)], mine)


@given(shapes, st.integers(0, 99))
def test_what_is_kept_may_be_said(shape: tuple[int, ...], seed: int) -> None:
    weight = sparse(shape, seed, 0.5, torch.float32)
    keep = sparse(shape, seed + 1, 0.5, torch.float32) != 0
    stored = Bitmask().encode(weight, keep)
    assert len(stored["compressed"]) == int(keep.sum())  # zeros that are kept, too
    assert torch.equal(Bitmask().decode(stored, shape), weight * keep)


def test_what_does_not_fit_is_refused() -> None:
    form, weight = Bitmask(), torch.eye(3)
    stored = form.encode(weight)
    with refused(ShapeError, what="bitmask", got=(3, 1)):
        form.decode(stored, (3, 9))
    with refused(ShapeError, what="compressed", got=2):
        form.decode(stored | {"compressed": torch.ones(2)}, (3, 3))
    with refused(ShapeError, what="keep", got=(2, 3)):
        form.encode(weight, torch.ones(2, 3, dtype=torch.bool))


def test_nan_and_infinity_come_back() -> None:
    weight = torch.tensor([[0.0, math.nan, -math.inf, 2.0]])
    back = Bitmask().decode(Bitmask().encode(weight), (1, 4))
    assert_close(back, weight, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("law", [law for law in LAWS if law not in CARD_LAWS])
def test_a_bitmask_obeys_the_laws_of_formats(law: Law) -> None:
    # it is in no paper, so it has no card of its own
    paper = Paper("2307.16867", 2023, "none")
    law(Card("bitmask", "format", Bitmask, paper, tags=frozenset({"exact"})))


@pytest.mark.parametrize("form", FORMATS, ids=repr)
@given(st.integers(0, 9), st.integers(0, 150), st.integers(0, 99), st.sampled_from([0, 0.1, 1]))
def test_any_format_multiplies_stores_and_permutes_as_it_says(
    form: Format, out: int, width: int, seed: int, density: float
) -> None:
    weight, x = sparse((out, width), seed, density, torch.float32), torch.randn(3, width)
    stored = form.encode(weight)
    plain = form.decode(stored, weight.shape).float()
    y = form.matmul(x, stored, weight.shape)
    assert y.shape == (3, out) and y.dtype == x.dtype
    # float32 sums; int8 inputs are off by half a step each
    rounds = isinstance(form, BlockInt) or getattr(form, "values", "") == "int8"
    step = x.abs().amax(1, keepdim=True) / 254 if rounds and width else torch.zeros(3, 1)
    limit = step * plain.abs().sum(1) + 1e-5 * (x.abs() @ plain.abs().T) + 1e-6
    assert bool(((y - x @ plain.T).abs() <= limit).all())
    file = safetensors.torch.save(dict(stored))
    assert nbytes(stored) == len(file) - 8 - int.from_bytes(file[:8], "little")
    if not isinstance(form, Gaussian):  # which reads mean and deviation of the whole
        order = torch.randperm(out, generator=torch.Generator().manual_seed(seed))
        turned = form.matmul(x, form.encode(weight[order]), weight.shape)
        assert_close(turned, y[:, order], rtol=1e-5, atol=1e-4)
