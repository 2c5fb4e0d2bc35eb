"""Gaussian codebooks: the published levels, packed bits that come back, a straight-through q."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.testing import assert_close

from intarsia.core import nbytes
from intarsia.core.errors import ConfigError, ShapeError
from intarsia.formats import Gaussian
from intarsia.formats.bits import pack_bits, unpack_bits
from intarsia.formats.gaussian import codebook

from ..refusals import refused

bits = st.integers(1, 8)


def quantise_naive(w: Tensor, b: int, kind: str) -> Tensor:
    """Entry by entry: the level nearest to z, times std, plus mean."""
    mean = w.mean()
    std = (((w - mean) ** 2).sum() / (w.numel() - 1)).sqrt()
    levels = torch.tensor(codebook(b, kind)[0], dtype=w.dtype)
    z = (w - mean) / (std + 1e-5)
    near = [levels[(levels - v).abs().argmin()] for v in z.flatten()]
    return torch.stack(near).view(w.shape) * std + mean


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_levels_are_the_published_ones() -> None:
    assert_close(torch.tensor(codebook(1)[0]), torch.tensor([-0.6745, 0.6745]), atol=1e-4, rtol=0)
    want = torch.tensor([-1.2657, -0.3778, 0.3778, 1.2657])
    assert_close(torch.tensor(codebook(2)[0]), want, atol=1e-4, rtol=0)
    lloyd = torch.tensor(codebook(1, "lloyd")[0])
    assert_close(lloyd, torch.tensor([-0.7979, 0.7979]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("b", [1, 2, 4])
def test_each_level_is_the_median_or_the_mean_of_what_falls_to_it(b: int) -> None:
    for kind in ("median", "lloyd"):
        levels, cuts = codebook(b, kind)
        ends = [-math.inf, *cuts, math.inf]
        for level, low, high in zip(levels, ends, ends[1:], strict=False):
            part = stats.truncnorm(low, high)
            assert level == pytest.approx(
                part.median() if kind == "median" else part.mean(), abs=2e-3
            )


@given(bits, st.integers(0, 50), st.integers(0, 2**31))
def test_packed_bits_come_back_to_the_last_one(b: int, count: int, seed: int) -> None:
    codes = torch.randint(2**b, (count,), generator=torch.Generator().manual_seed(seed))
    packed = pack_bits(codes, b)
    assert packed.dtype == torch.uint8 and len(packed) == math.ceil(count * b / 8)
    assert torch.equal(unpack_bits(packed, b, count), codes)
    naive = sum(int(c) << (b * i) for i, c in enumerate(codes))  # one long number
    assert bytes(packed.tolist()) == naive.to_bytes(len(packed), "little")


@given(bits, st.integers(1, 9), st.integers(1, 9), st.sampled_from(["median", "lloyd"]))
def test_decode_gives_what_training_saw(b: int, rows: int, columns: int, kind: str) -> None:
    w, form = normal(rows, columns).float(), Gaussian(b, kind)
    made = form.encode(w)
    assert torch.equal(form.decode(made, w.shape), form.quantise(w))  # bit by bit
    assert form.size(w.shape) == nbytes(made) == math.ceil(w.numel() * b / 8) + 8


@pytest.mark.parametrize("kind", ["median", "lloyd"])
@pytest.mark.parametrize("b", [1, 2, 3])
def test_quantise_is_its_naive_twin_and_passes_the_gradient(b: int, kind: str) -> None:
    w = normal(5, 7).requires_grad_()
    got = Gaussian(b, kind).quantise(w)
    assert_close(got, quantise_naive(w, b, kind))
    weight = normal(5, 7, seed=1)
    (grad,) = torch.autograd.grad((got * weight).sum(), w)
    # the twin: q(z) a constant to which z - z0 is added
    mean, std = w.mean(), w.std()
    z = (w - mean) / (std + 1e-5)
    q = ((got - mean) / std).detach()
    (want,) = torch.autograd.grad((((q + z - z.detach()) * std + mean) * weight).sum(), w)
    assert_close(grad, want)
    assert grad.all()


def test_a_single_bit_is_the_sign() -> None:
    w = normal(6, 6)
    form = Gaussian(1)
    codes = unpack_bits(form.encode(w)["codes"], 1, 36).view(6, 6)
    assert torch.equal(codes == 1, w > w.mean())


def test_a_decoded_tensor_coded_again_is_another() -> None:
    form, w = Gaussian(2), normal(8, 8).float()
    once = form.quantise(w)
    assert not torch.allclose(form.quantise(once), once, atol=1e-3)  # so codes are stored


@pytest.mark.parametrize("w", [torch.full((3, 3), 0.5), torch.zeros(4), torch.ones(1, 1)])
def test_a_constant_tensor_stays_finite_and_itself(w: Tensor) -> None:
    w.requires_grad_()
    got = Gaussian(1).quantise(w)
    assert_close(got, w.detach())
    got.sum().backward()
    assert w.grad is not None and w.grad.isfinite().all()


def test_more_bits_err_less() -> None:
    w = normal(64, 64)
    errors = [float((Gaussian(b).quantise(w) - w).square().mean()) for b in range(1, 7)]
    assert errors == sorted(errors, reverse=True)
    lloyd = [float((Gaussian(b, "lloyd").quantise(w) - w).square().mean()) for b in range(1, 7)]
    assert all(a < b for a, b in zip(lloyd, errors, strict=True))  # made for the squared error


def test_half_precision_is_computed_in_full() -> None:
    w = normal(5, 5).bfloat16()
    assert torch.equal(Gaussian(2).quantise(w), Gaussian(2).quantise(w.float()).bfloat16())


def test_what_cannot_be_is_refused() -> None:
    with refused(ConfigError, what="bits", got=0):
        Gaussian(0)
    with refused(ConfigError, what="codebook", got="'kmeans'"):
        Gaussian(1, "kmeans")
    with refused(ConfigError, what="keep", got="a mask"):
        Gaussian(1).encode(normal(3, 3), normal(3, 3) > 0)
    made = Gaussian(1).encode(normal(3, 3))
    with refused(ShapeError, what="codes", got=(2,)):
        Gaussian(1).decode(made, (4, 5))
