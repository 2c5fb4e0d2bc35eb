"""The kernel of whole weights is torch's product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ShapeError
from intarsia.formats import Dense
from intarsia.kernels import dense, native

from ..refusals import refused

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
SIZES = ((1, 1, 1.0), (5, 7, 0.5), (33, 130, 0.3), (0, 8, 0.5), (4, 0, 0.5), (3, 65535, 0.01))


def drawn(rows: int, width: int, density: float, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    weight = torch.randn(rows, width, generator=generator)
    weight = weight * (torch.rand(rows, width, generator=generator) < density)
    return weight, torch.randn(batch, width, generator=generator)


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
    form = Dense()
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
