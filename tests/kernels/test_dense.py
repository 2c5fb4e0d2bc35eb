"""Products of a whole weight: those of float64, and the same bits however many rows x has."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from intarsia.kernels import dense

# the last is larger than what stays in the cache while all of x passes
SIDES = [(1, 1), (7, 31), (5, 64), (9, 100), (70, 1003)]


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_a_row_has_the_same_bits_alone_and_among_others(
    sides: tuple[int, int], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(sides, generator=generator).to(dtype)
    x = torch.randn(19, sides[1], generator=generator)
    if not dense.runs(x, weight):
        pytest.skip("no kernels of this kind here")
    alone = torch.cat([dense.linear(row[None], weight) for row in x])
    for count in range(20):
        assert torch.equal(dense.linear(x[:count], weight), alone[:count])
    assert_close(alone.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-4)


def test_each_expert_multiplies_its_rows() -> None:
    loads, generator = [0, 3, 1, 14, 0, 33], torch.Generator().manual_seed(1)
    weight = torch.randn(len(loads), 6, 40, generator=generator)
    x = torch.randn(sum(loads), 40, generator=generator)
    if not dense.runs_grouped(x, weight):
        pytest.skip("no kernels here")
    y = dense.grouped(x, weight, loads, x.new_empty(len(x), 6))
    parts = zip(x.split(loads), weight, strict=True)
    assert torch.equal(y, torch.cat([dense.linear(rows, w) for rows, w in parts]))
