"""The kernels of columns and of whole weights against their twins, and damaged columns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ShapeError
from intarsia.formats import Columns, Dense
from intarsia.kernels import columns, dense, native

from ..refusals import refused
from .counts import on_threads

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
SIZES = ((1, 1, 1.0), (5, 7, 0.5), (33, 130, 0.3), (0, 8, 0.5), (4, 0, 0.5), (3, 65535, 0.01))


def drawn(rows: int, width: int, density: float, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    weight = torch.randn(rows, width, generator=generator)
    weight = weight * (torch.rand(rows, width, generator=generator) < density)
    return weight, torch.randn(batch, width, generator=generator)


def parts(weight: Tensor, values: str) -> tuple[Tensor, Tensor, Tensor]:
    stored = Columns(values).encode(weight)
    return stored["values"], stored["columns"], stored["row_offsets"]


@pytest.mark.parametrize("values", ["fp32", "bf16"])
def test_columns_are_their_twin_at_any_size_and_number_of_threads(build: str, values: str) -> None:
    for rows, width, density in SIZES:
        weight, x = drawn(rows, width, density, batch=5)
        stored = parts(weight, values)
        y = columns.linear(x, *stored)
        assert_close(y, columns.naive_columns_linear(x, *stored), rtol=1e-5, atol=1e-4)
        for _ in on_threads(2, 5):
            assert torch.equal(y, columns.linear(x, *stored))


def test_work_at_the_end_is_shared_and_gives_the_same_bits(build: str) -> None:
    weight, x = drawn(700, 1100, 0.3)
    weight[:600] = 0
    stored = parts(weight, "fp32")
    outputs: list[Tensor] = []
    for _ in on_threads(1, 2, 7):
        outputs.append(columns.linear(x, *stored))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    assert_close(outputs[0], x @ weight.T, rtol=1e-5, atol=1e-4)


def test_what_is_not_finite_comes_through_kept_weights_alone(build: str) -> None:
    weight, x = drawn(6, 70, 0.5)
    weight[:3, 5], weight[3:, 5] = 1.0, 0.0
    x[1, 5] = math.inf
    y = columns.linear(x, *parts(weight, "fp32"))
    assert y[0].isfinite().all() and y[1, 3:].isfinite().all() and not y[1, :3].isfinite().any()


def test_damaged_columns_and_offsets_are_refused_and_read_nothing_else(build: str) -> None:
    weight, x = drawn(9, 130, 0.5)
    values, columns_, offsets = parts(weight, "fp32")
    generator = torch.Generator().manual_seed(0)
    for trial in range(60):
        w, c, o = values, columns_.clone(), offsets.clone()
        place = int(torch.randint(9, (), generator=generator))
        if trial % 3 == 0:
            c[int(torch.randint(len(c), (), generator=generator))] = 130 + trial
        elif trial % 3 == 1:
            o[place] = (2**31 - 1, -7, -(2**31))[trial // 3 % 3]
        else:
            keep = len(w) - 1 - place
            w, c = w[:keep].clone(), c[:keep].clone()
        with refused(ShapeError, what="stored weight"):
            columns.linear(x, w, c, o)
    with refused(
        ShapeError, what="stored weight", got="(560,) values, (561,) columns of torch.uint16"
    ):
        columns.linear(x, values[:-1], columns_, offsets)


def test_columns_have_the_gradient_of_the_dense_product() -> None:
    weight, x = drawn(33, 130, 0.3)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    stored = Columns().encode(weight)
    Columns().matmul(ours, stored, weight.shape).square().sum().backward()
    (theirs @ weight.T).square().sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_a_whole_weight_in_bfloat16_is_torchs_product_in_float32(build: str) -> None:
    for rows, width, _ in SIZES:
        weight, x = drawn(rows, width, 1.0, batch=5)
        half = weight.bfloat16()
        y = dense.linear(x, half)
        assert_close(y, x @ half.float().T, rtol=1e-5, atol=2e-3)
        stored = Dense().encode(weight)
        assert torch.equal(Dense().matmul(x, stored, weight.shape), y)
        assert torch.equal(Dense().decode(stored, weight.shape), half)
    with refused(ShapeError, what="values", got=(3, 65535)):
        Dense().matmul(x, stored, (9, 9))


def test_what_is_bound_to_a_weight_is_its_product() -> None:
    weight, x = drawn(33, 130, 0.3, batch=4)
    for form in (Columns(), Columns("bf16"), Dense()):
        stored = form.encode(weight)
        bound = form.bound(stored, weight.shape)
        want = form.matmul(x, stored, weight.shape)
        assert bound.takes(x) and torch.equal(bound(x), want)
        assert torch.equal(bound(x[:, None]), want[:, None])
        half = x.bfloat16()
        assert torch.equal(bound(half), form.matmul(half, stored, weight.shape))
        assert not bound.takes(x.double()) and not bound.takes(x.repeat(9, 1))
        assert not bound.takes(x.clone().requires_grad_())
        with native.using("off"):
            assert form.bound(stored, weight.shape) is None
