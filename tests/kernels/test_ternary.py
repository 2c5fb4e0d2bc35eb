"""The kernel of ternary words against its twin, in every build, and on damaged input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ShapeError
from intarsia.kernels import native
from intarsia.kernels.ternary import dictionary, naive_ternary, ternary, words_of

from .counts import on_threads

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")


def made(rows: int, width: int, zeros: float = 0.885) -> tuple[Tensor, tuple[Tensor, ...]]:
    draw = torch.Generator().manual_seed(0)
    odds = torch.tensor([zeros, (1 - zeros) / 2, (1 - zeros) / 2])
    drawn = torch.multinomial(odds, max(1, rows * width), True, generator=draw)
    digits = drawn[: rows * width].view(rows, width).to(torch.uint8)
    codes, offsets = words_of(digits, dictionary())
    levels = torch.randn(rows, 2, generator=draw).abs() * torch.tensor([-1.0, 1.0])
    return torch.randn(3, width, generator=draw), (codes, offsets, levels.bfloat16())


@pytest.mark.parametrize("size", [(1, 2), (5, 8), (33, 130), (0, 8), (4, 0), (200, 1024)])
@pytest.mark.parametrize("zeros", [0.885, 0.34])
def test_it_gives_what_its_twin_gives(size: tuple[int, int], zeros: float, build: str) -> None:
    x, stored = made(*size, zeros)
    want = naive_ternary(x, *stored, dictionary())
    assert_close(ternary(x, *stored, dictionary()), want, atol=2e-5, rtol=1e-4)


def test_any_number_of_workers_gives_the_same_bits(build: str) -> None:
    x, stored = made(600, 512)
    outputs: list[Tensor] = []
    for _ in on_threads(1, 2, 3, 7):
        outputs.append(ternary(x, *stored, dictionary()))
    assert all(torch.equal(y, outputs[0]) for y in outputs)


def test_damaged_tensors_are_refused_and_nothing_outside_is_read(build: str) -> None:
    x, (codes, offsets, levels) = made(33, 130)
    longest = int((dictionary().lengths == 28).nonzero()[0])
    falling = offsets.clone()
    falling[5] = 2**40
    for bad in (
        (torch.full_like(codes, longest), offsets, levels),
        (torch.zeros_like(codes), offsets, levels),
        (codes[:-1], offsets, levels),
        (codes, falling, levels),
        (codes, offsets, levels.float()),
    ):
        with pytest.raises(ShapeError, match="Copy the file again"):
            ternary(x, *bad, dictionary())
