"""Group-sparse int4: what is stored, its bytes, its product, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from intarsia.conformance.cards import CARD_LAWS
from intarsia.conformance.formats import LAWS
from intarsia.conformance.verdict import Law
from intarsia.core import Card, Paper, nbytes
from intarsia.core.errors import ConfigError, DataError, ShapeError
from intarsia.formats import GroupSparse
from intarsia.kernels import native
from intarsia.kernels.gqsa import affine, codes_of, rounded
from intarsia.methods.gqsa.coded import CodedGroups

from ..refusals import refused

FORM = GroupSparse()


def drawn(rows: int, across: int, density: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and a mask of whole groups."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 16 * across, generator=draw)
    return weight, (torch.rand(rows, across, generator=draw) < density).repeat_interleave(16, 1)


@pytest.mark.parametrize("law", [law for law in LAWS if law not in CARD_LAWS])
@pytest.mark.parametrize("bits", [4, 8])
def test_it_obeys_the_laws_of_formats(law: Law, bits: int) -> None:
    """A second rounding may move more than the first: the extremes are not always codes."""
    paper = Paper("2412.17560", 2024, "GQSA")
    exceptions = {"keeps_shape_and_dtype": "float32", "moves_less_the_second_time": "extremes"}
    if law.__name__ not in exceptions:
        law(Card("group_sparse", "format", lambda: GroupSparse(bits), paper))


@given(st.integers(0, 5), st.integers(1, 4), st.floats(0, 1), st.integers(0, 99))
def test_the_bytes_are_those_of_kept_groups(
    rows: int, across: int, density: float, seed: int
) -> None:
    weight, keep = drawn(rows, across, density, seed)
    stored = FORM.encode(weight, keep)
    count = int(keep.sum()) // 16
    assert nbytes(stored) == 12 * count + math.ceil(count / 2) + 4 * (rows + 1)  # 100 bits a group
    back = FORM.decode(stored, weight.shape)
    assert not back[~keep].any()
    groups = (weight * keep).view(rows, across, 16)
    spread = groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)
    # half a step, and what rounding the scale to bfloat16 moves the extremes
    limit = spread[..., None] * (0.5 / 15 + 2**-8)
    assert bool(((back.view_as(groups) - groups).abs() <= limit + 1e-7).all())


def test_all_groups_kept_is_plain_int4() -> None:
    weight, _ = drawn(6, 3, 1.0)
    groups = weight.view(6, 3, 16)
    scale, zero = affine(groups, 4)
    plain = scale[..., None] * (
        codes_of(groups, scale[..., None], zero[..., None], 4) - zero[..., None]
    )
    assert torch.equal(FORM.decode(FORM.encode(weight), weight.shape), plain.view(6, 48))


def test_codes_that_were_chosen_are_stored_as_they_are() -> None:
    """Scales of bfloat16 come back exactly: a trained scale is the one that is written."""
    mask = torch.tensor([[True, False, True], [False, False, True]])
    codes = torch.arange(48).view(3, 16) % 16
    scales, zeros = torch.tensor([0.5, 2.0**-7 * 129 / 128, 3.0]), torch.tensor([0.0, 15.0, 8.0])
    back = FORM.decode(FORM.stored(codes, scales, zeros, mask), (2, 48)).view(2, 3, 16)
    assert torch.equal(back[mask], (codes - zeros[:, None]) * scales[:, None])
    assert not back[~mask].any()


def test_a_kept_group_of_zeros_is_not_a_pruned_one() -> None:
    weight, keep = torch.zeros(2, 32), torch.zeros(2, 32, dtype=torch.bool)
    keep[1, 16:] = True
    stored = FORM.encode(weight, keep)
    assert stored["columns"].tolist() == [1] and stored["row_offsets"].tolist() == [0, 0, 1]
    assert not FORM.decode(stored, weight.shape).any()
    assert len(FORM.encode(weight)["columns"]) == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_group_of_one_sign_has_its_zero_among_the_codes(sign: int) -> None:
    groups = sign * torch.linspace(3.0, 4.0, 16)[None]
    scale, zero = affine(groups, 4)
    assert zero.item() == (0 if sign > 0 else 15)
    assert_close(scale, torch.tensor([4 / 15]), rtol=2**-8, atol=0)
    half, middle = affine(groups, 4, symmetric=True)
    assert middle.item() == 8
    assert_close(half, torch.tensor([4 / 7.5]), rtol=2**-8, atol=0)
    assert affine(torch.zeros(1, 16), 4) == (0, 0)


def test_columns_are_padded_and_rows_are_as_wide_as_an_index() -> None:
    weight = torch.randn(3, 21, generator=torch.Generator().manual_seed(0))
    stored = FORM.encode(weight)
    assert len(stored["columns"]) == 6
    assert_close(FORM.decode(stored, (3, 21)), weight, atol=0.25, rtol=0)
    x = torch.randn(2, 21)
    assert_close(FORM.matmul(x, stored, (3, 21)), x @ FORM.decode(stored, (3, 21)).T)
    narrow = GroupSparse(group=1)
    wide = torch.zeros(1, 65_535)
    wide[0, -1] = 15 / 16
    assert torch.equal(narrow.decode(narrow.encode(wide), wide.shape), wide)
    with refused(ShapeError, what="weight", got="65,536 groups in a row, 0 in all"):
        narrow.encode(torch.zeros(1, 65_536))


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize("rows", [4, 8])
def test_rows_of_a_block_have_the_same_groups(rows: int, activations: str) -> None:
    weight, keep = drawn(9, 3, 0.5)  # the last block has one row
    form = GroupSparse(activations=activations, rows=rows)
    stored = form.encode(weight, keep)
    blocks = -(-9 // rows)
    union = torch.stack([part.any(0) for part in keep.split(rows)])
    count = int(union.sum()) // 16
    # 84 bits for each row of a group, of rows that fill up a block too, and a place for all
    row_bytes = 10 * count * rows + math.ceil(count * rows / 2)
    assert nbytes(stored) == row_bytes + 2 * count + 4 * (blocks + 1)
    back = form.decode(stored, weight.shape)
    assert torch.equal(back, FORM.decode(FORM.encode(weight, keep), weight.shape))
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
    inputs = rounded(x, 16) if activations == "int8" else x
    assert_close(form.matmul(x, stored, weight.shape), inputs @ back.T)
    with refused(ShapeError, what="groups"):
        form.decode(stored, (9 + rows, 48))
    with refused(ConfigError, what="rows", got=2):
        GroupSparse(rows=2)


def test_rounded_inputs_share_a_scale_with_their_group_alone() -> None:
    x = torch.cat([torch.full((16,), 1e-3), torch.full((16,), 1e3), torch.zeros(16)])
    assert_close(rounded(x, 16), x, rtol=1e-6, atol=0)
    weight, keep = drawn(4, 3, 0.7)
    stored = FORM.encode(weight, keep)
    form = GroupSparse(activations="int8")
    rows, row = x.repeat(40, 1), x[None]
    want = row @ FORM.decode(stored, weight.shape).T
    assert_close(form.matmul(row, stored, weight.shape), want)
    assert_close(form.matmul(rows, stored, weight.shape), want.expand(40, -1))


@pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
@pytest.mark.parametrize("activations", ["float", "int8"])
def test_many_rows_are_multiplied_as_they_are_stored(
    activations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, keep = drawn(5, 3, 0.6)
    form = GroupSparse(activations=activations)
    stored = form.encode(weight, keep)
    x = torch.randn(300, 48, generator=torch.Generator().manual_seed(1))
    want = form.matmul(x, stored, weight.shape)  # so many are decoded first
    monkeypatch.setattr(GroupSparse, "decode", None)
    for rows in (1, 5, 33, 128):
        assert_close(form.matmul(x[:rows], stored, weight.shape), want[:rows], rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
@pytest.mark.parametrize("activations", ["float", "int8"])
def test_a_weight_that_stays_is_multiplied_as_any_other(activations: str) -> None:
    weight, keep = drawn(5, 3, 0.6)
    form = GroupSparse(activations=activations)
    stored = form.encode(weight, keep)
    x = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(1))
    product = form.bound(stored, weight.shape)
    assert product.takes(x) and torch.equal(product(x), form.matmul(x, stored, weight.shape))
    some, short = form.encode(weight[:, :40]), x[..., :40]  # the last group has 8
    want = form.matmul(short, some, (5, 40))
    assert torch.equal(form.bound(some, (5, 40))(short), want)
    assert GroupSparse(3).bound(GroupSparse(3).encode(weight), (5, 48)) is None
    shared = GroupSparse(activations=activations, rows=4)  # the last block has one row
    stored = shared.encode(weight, keep)
    product = shared.bound(stored, weight.shape)
    assert torch.equal(product(x), shared.matmul(x, stored, weight.shape))


def test_what_does_not_fit_is_refused() -> None:
    weight, keep = drawn(3, 2, 1.0)
    keep[1] = False
    stored: Any = FORM.encode(weight, keep)
    for part, value in (
        ("columns", torch.tensor([0, 2, 0, 1], dtype=torch.uint16)),
        ("columns", torch.tensor([0, 0, 0, 1], dtype=torch.uint16)),
        ("row_offsets", torch.tensor([0, 3, 2, 4], dtype=torch.int32)),
        ("codes", stored["codes"][:-1]),
        ("zeros", stored["zeros"][:-1]),
    ):
        with refused(ShapeError, what="groups"):
            FORM.decode({**stored, part: value}, (3, 32))
    for bad in (math.nan, math.inf):
        weight[0, 0] = bad
        with refused(DataError, what="weight"):
            FORM.encode(weight)


@given(st.integers(0, 99), st.sampled_from([2, 4, 8]))
def test_a_zero_point_is_one_of_the_codes(seed: int, bits: int) -> None:
    """Also where the scale, rounded to bfloat16, is less than a code: all weights below 0."""
    groups = -torch.rand(64, 16, generator=torch.Generator().manual_seed(seed))
    scale, zero = affine(groups, bits)
    assert bool((zero <= 2**bits - 1).all() and (zero >= 0).all())
    form = GroupSparse(bits)
    parts = groups[:, None], scale[:, None], zero[:, None], torch.ones(64, 1)
    coded = CodedGroups(form, 16, *parts)
    for outside, inside in ((-3.0, 0.0), (300.0, 2**bits - 1)):
        ends = (torch.full((64, 1), value) for value in (outside, inside))
        got, want = (coded.rounded(groups[:, None], scale[:, None], zero) for zero in ends)
        assert torch.equal(got, want)
