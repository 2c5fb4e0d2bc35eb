"""GPTQ of a stack is GPTQ of each weight; without moments it is rounding to nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ShapeError
from intarsia.partitions import choose_and_compensate
from intarsia.partitions.stacks import compensate_stack
from intarsia.scores import Statistics

from ..refusals import refused


def halves(column: Tensor) -> Tensor:
    return (column * 2).round() / 2


def drawn(experts: int, out: int, width: int) -> tuple[Tensor, list[Statistics | None]]:
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(experts, out, width, generator=draw)
    mixing = torch.randn(width, width, generator=draw)
    rows = [torch.randn(3 * width + 5 * e, width, generator=draw) @ mixing for e in range(experts)]
    return weights, [Statistics.of(x, hessian=True) for x in rows]


@pytest.mark.parametrize(("width", "block"), [(7, 128), (70, 32), (130, 128)])
def test_each_weight_is_what_it_would_be_alone(width: int, block: int) -> None:
    weights, seen = drawn(3, 4, width)
    found, told = compensate_stack(weights, seen, halves, damp=0.1, block=block)
    assert told == ["", "", ""]
    for weight, stats, new in zip(weights, seen, found, strict=True):
        assert stats is not None
        _, want = choose_and_compensate(
            weight, stats, code=lambda c, _: halves(c), damp=0.1, block=block
        )
        assert_close(new, want, atol=0.5, rtol=0)  # a tie may fall the other way
        assert ((new - want).abs() > 1e-6).float().mean() < 0.02


def test_moments_of_one_size_in_all_directions_are_rounding_to_nearest() -> None:
    weights, _ = drawn(2, 5, 12)
    eye = Statistics(1, None, None, torch.eye(12, dtype=torch.float64))
    found, _ = compensate_stack(weights, [eye, eye], halves)
    assert torch.equal(found, halves(weights))


def test_an_expert_that_saw_nothing_is_rounded_by_itself_and_told() -> None:
    weights, seen = drawn(3, 4, 9)
    weights[2, :, 3] = 5
    broken = Statistics(4, None, None, torch.full((9, 9), float("nan"), dtype=torch.float64))
    found, told = compensate_stack(weights, [seen[0], None, broken], halves)
    assert torch.equal(found[1:], halves(weights[1:]))
    assert not torch.equal(found[0], halves(weights[0]))
    assert told[0] == "" and "no row" in told[1] and "not finite" in told[2]


def test_statistics_of_others_are_refused() -> None:
    weights, seen = drawn(3, 4, 9)
    with refused(ShapeError, what="statistics"):
        compensate_stack(weights, seen[:2], halves)
    with refused(ShapeError, what="statistics"):
        compensate_stack(weights[..., 1:], seen, halves)
