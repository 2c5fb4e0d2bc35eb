"""Blocks of 32 at 4 and 8 bits: GGUF's own bytes, errors of half a step, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.core.errors import ConfigError, DataError, ShapeError
from intarsia.core.format import nbytes
from intarsia.formats import BlockInt
from intarsia.formats.rows import matrix

from ..toys import drawn

gguf = pytest.importorskip("gguf")
TYPES = {4: gguf.GGMLQuantizationType.Q4_0, 8: gguf.GGMLQuantizationType.Q8_0}


@pytest.mark.parametrize("bits", [4, 8])
def test_its_bytes_and_values_are_those_of_gguf_s_own_package(bits: int) -> None:
    weight, form = drawn(37, 96) * drawn(37, 1, seed=1).exp(), BlockInt(bits)
    weight[3] = 0
    weight[5] *= 1e-7  # scales that float16 has only as subnormal numbers
    want = gguf.quants.quantize(weight.numpy(), TYPES[bits])
    stored = form.encode(weight)
    written = form.to_gguf(stored, weight.shape)
    assert np.array_equal(written.numpy(), want)
    again = form.of_gguf(torch.from_numpy(want), weight.shape)
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())
    values = gguf.quants.dequantize(want, TYPES[bits])
    assert np.array_equal(form.decode(stored, weight.shape).numpy(), values)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (17, 33), (16, 32), (7,), (3, 5, 3, 3), (0, 40), (4, 0)])
def test_errors_are_a_step_at_most_and_bytes_the_formula(bits: int, shape: tuple[int, ...]) -> None:
    weight, form = drawn(*shape), BlockInt(bits)
    stored = form.encode(weight)
    rows, width = matrix(weight).shape
    blocks = -(-rows // 16) * 16 * -(-width // 32)
    assert nbytes(stored) == blocks * (2 + 4 * bits)
    step = stored["scales"].float().abs().amax() if blocks else torch.zeros(())
    off = (form.decode(stored, shape) - weight).abs()
    assert off.numel() == 0 or float(off.max()) <= 1.01 * float(step) / (1 if bits == 4 else 2)


def test_what_is_not_kept_is_zero() -> None:
    weight = drawn(5, 70)
    keep = drawn(5, 70, seed=3) > 0
    for form in (BlockInt(4), BlockInt(8)):
        assert not form.decode(form.encode(weight, keep), weight.shape)[~keep].any()


def test_bad_settings_weights_and_bytes_are_refused() -> None:
    with pytest.raises(ConfigError) as bad:
        BlockInt(5)
    assert "bits" in str(bad.value)
    with pytest.raises(DataError):
        BlockInt().encode(torch.tensor([[1.0, math.inf]]))
    form, weight = BlockInt(), drawn(4, 40)
    stored = form.encode(weight)
    refused: list[Any] = [
        lambda: form.to_gguf(stored, weight.shape),
        lambda: form.of_gguf(torch.zeros(4, 20, dtype=torch.uint8), (4, 32)),
        lambda: form.decode(stored, (40, 40)),
        lambda: form.matmul(drawn(2, 70), stored, (4, 70)),
        lambda: BlockInt(8).decode(stored, weight.shape),
        lambda: form.bound(stored | {"scales": stored["scales"].float()}, weight.shape),
    ]
    for call in refused[:-1]:
        with pytest.raises(ShapeError):
            call()
