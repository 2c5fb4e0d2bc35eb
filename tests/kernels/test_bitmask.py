"""The kernel of bitmasks against its twin, in every build, at odd sizes, and on damaged input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ShapeError
from intarsia.formats import Bitmask
from intarsia.kernels import bitmask, native

from ..refusals import refused
from .counts import on_threads

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
SIZES = ((1, 1, 1.0), (5, 7, 0.5), (33, 130, 0.3), (7, 64, 1.0), (0, 8, 0.5), (4, 0, 0.5))
MORE = ((3, 65535, 0.01), (70, 200, 0.0), (40, 576, 0.5))
VALUES = ("fp32", "bf16", "int8")


def drawn(rows: int, width: int, density: float, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    weight = torch.randn(rows, width, generator=generator)
    weight = weight * (torch.rand(rows, width, generator=generator) < density)
    return weight, torch.randn(batch, width, generator=generator)


def parts(weight: Tensor, values: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    stored = Bitmask(values).encode(weight)
    tensors = (stored[n] for n in ("bitmask", "compressed", "row_offsets"))
    return (*tensors, stored.get("scales"))  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("values", VALUES)
def test_the_kernel_is_its_twin_at_any_size_batch_and_number_of_threads(
    build: str, values: str
) -> None:
    for rows, width, density in (*SIZES, *MORE):
        weight, x = drawn(rows, width, density, batch=7)
        bits, numbers, offsets, scales = parts(weight, values)
        y = bitmask.linear(x, bits, numbers, offsets, scales)
        want = bitmask.naive_bitmask_linear(x, bits, numbers, scales)
        assert_close(y, want, rtol=1e-5, atol=1e-5 * max(1.0, width**0.5))
        products = [bitmask.linear(row, bits, numbers, offsets, scales) for row in x]
        assert torch.equal(y, torch.stack(products))  # a row does not depend on its batch
        for _ in on_threads(2, 5):
            assert torch.equal(y, bitmask.linear(x, bits, numbers, offsets, scales))


@pytest.mark.parametrize("values", VALUES)
def test_it_decodes_what_the_format_decodes_to_the_bit(build: str, values: str) -> None:
    for rows, width, density in (*SIZES, *MORE):
        weight, _ = drawn(rows, width, density)
        form = Bitmask(values)
        want = form.decode(form.encode(weight), weight.shape)
        assert torch.equal(bitmask.decode(*parts(weight, values), width), want)


def test_threads_share_what_is_large_enough_to_be_shared(build: str) -> None:
    weight, x = drawn(700, 1100, 0.3, batch=2)
    weight[:600] = 0  # the work is at the end
    stored = parts(weight, "fp32")
    outputs: list[Tensor] = []
    for _ in on_threads(1, 2, 7):
        outputs.append(bitmask.linear(x, *stored))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_rows_that_are_permuted_permute_the_outputs(build: str) -> None:
    weight, x = drawn(33, 130, 0.3)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1))
    for values in VALUES:
        y = bitmask.linear(x, *parts(weight, values))
        assert torch.equal(bitmask.linear(x, *parts(weight[order], values)), y[:, order])


@pytest.mark.parametrize("values", VALUES)
def test_what_is_not_finite_in_x_comes_through_kept_weights_alone(build: str, values: str) -> None:
    weight, x = drawn(6, 70, 0.5)
    weight[:3, 5], weight[3:, 5] = 1.0, 0.0
    weight[0, 9] = 2.0
    for bad in (math.nan, math.inf):
        x[1, 5] = bad
        y = bitmask.linear(x, *parts(weight, values))
        assert y[0].isfinite().all() and y[2].isfinite().all()
        if values == "int8":  # a row of x is rounded as a whole
            assert y[1].isnan().all()
        else:
            assert not y[1, :3].isfinite().any() and y[1, 3:].isfinite().all()


def test_int8_is_off_by_no_more_than_it_says() -> None:
    weight, x = drawn(40, 576, 0.5, batch=4)
    form = Bitmask("int8")
    stored = form.encode(weight)
    plain = form.decode(stored, weight.shape)
    assert bool(((plain - weight).abs().amax(1) <= stored["scales"] * 0.5001).all())
    off = (form.matmul(x, stored, weight.shape) - x @ plain.T).abs()
    limit = x.abs().amax(1)[:, None] * plain.abs().sum(1) / 254
    assert bool((off <= limit).all()) and float(off.max()) > 0


def test_a_few_rows_and_many_have_the_same_product_and_gradient() -> None:
    weight, x = drawn(33, 130, 0.3, batch=40)
    for values in ("fp32", "bf16"):
        form, stored = Bitmask(values), Bitmask(values).encode(weight)
        first_rows, all_rows = x[:3].clone().requires_grad_(), x.clone().requires_grad_()
        y, want = (
            form.matmul(first_rows, stored, weight.shape),
            form.matmul(all_rows, stored, weight.shape),
        )
        assert_close(y, want[:3])
        y.sum().backward()
        want.sum().backward()
        assert first_rows.grad is not None and all_rows.grad is not None
        assert_close(first_rows.grad, all_rows.grad[:3])
        half = form.matmul(x[:2].bfloat16(), stored, weight.shape)
        assert half.dtype == torch.bfloat16
        assert_close(half.float(), want[:2].detach(), rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("values", VALUES)
def test_stored_tensors_that_do_not_fit_together_are_refused_and_read_nothing_else(
    build: str, values: str
) -> None:
    weight, x = drawn(9, 130, 0.5)
    bits, numbers, offsets, scales = parts(weight, values)
    generator = torch.Generator().manual_seed(0)
    for trial in range(60):
        b, k, o = bits.clone(), numbers, offsets.clone()
        if trial % 3 == 0:
            place = int(torch.randint(len(o), (), generator=generator))
            o[place] += (2**62, -7, 3, -(2**62))[trial % 4]
        elif trial % 3 == 1:
            k = numbers[: int(torch.randint(len(numbers), (), generator=generator))].clone()
        else:
            place = int(torch.randint(len(b), (), generator=generator))
            b[place, trial % 16] ^= 1 << trial % 8
        with refused(ShapeError, what="stored weight"):
            bitmask.linear(x, b, k, o, scales)
        with refused(ShapeError, what="stored weight"):
            bitmask.decode(b, k, o, scales, 130)
    with refused(ShapeError, what="bitmask", got="bits (9, 17), offsets (9,)"):
        bitmask.linear(x[:, :-9], bits, numbers, offsets, scales)


def test_torch_compile_knows_the_shape() -> None:
    weight, x = drawn(6, 70, 0.5)
    stored = parts(weight, "fp32")
    bitmask.linear(x, *stored)
    y = torch.ops.intarsia.bitmask_linear(
        x.to("meta"), *(t if t is None else t.to("meta") for t in stored)
    )
    assert y.shape == (3, 6) and y.is_meta


def test_what_is_bound_to_a_weight_is_its_product_and_refuses_damage() -> None:
    weight, x = drawn(33, 130, 0.3, batch=4)
    for values in VALUES:
        form = Bitmask(values)
        stored = form.encode(weight)
        bound = form.bound(stored, weight.shape)
        want = form.matmul(x, stored, weight.shape)
        assert bound.takes(x) and torch.equal(bound(x), want)
        stored["row_offsets"][3] += 1
        with refused(
            ShapeError, what="stored weight", got="row 2 that does not end where the next begins"
        ):
            bound(x)
