"""Products of sorted rows are those of each row with its expert's matrix, whichever way they go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from intarsia.kernels.experts import ends_of
from intarsia.kernels.experts.grouped import FEW, at_once, few, grouped

LOADS = [(3, 0, 4, 1), (0, 0, 0, 0), (0, 6, 0, 0), (0, 0, 0, 9), (20, 3, 0, 9)]
SHAPES = {"odd": (5, 7), "whole": (8, 16)}  # the second suits torch's grouped product


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_each_row_meets_its_experts_matrix(
    load: tuple[int, ...], shape: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    expert = torch.arange(4).repeat_interleave(torch.tensor(load))
    exact = [torch.randn(len(expert), shape[0]), torch.randn(4, shape[1], shape[0])]
    scale = torch.randn(len(expert), shape[1]).double()

    def with_grads(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        return y, *torch.autograd.grad((y.double() * scale).sum(), leaves)

    rows, weight = (t.to(dtype).requires_grad_() for t in exact)
    ours = with_grads(grouped(rows, weight, ends_of(expert, 4)), [rows, weight])
    r, w = (t.detach().double().requires_grad_() for t in (rows, weight))
    want = with_grads(torch.einsum("ni,noi->no", r, w[expert]), [r, w])
    for a, b in zip(ours, want, strict=True):
        near = 0.02 if dtype == torch.bfloat16 else 1e-5
        assert a.dtype == dtype and (a.double() - b).norm() <= near * b.norm() + 1e-9


def test_all_ways_to_multiply_are_tested() -> None:
    weight = torch.ones(4, 16, 8)
    loads = [sum(load) for load in LOADS]
    assert {few(torch.ones(n, 8), weight) for n in loads} == {True, False}
    assert any(few(torch.ones(sum(x), 8), weight) and max(x) > FEW for x in LOADS)
    assert not few(torch.ones(2, 8), torch.ones(4, 8, 16).transpose(1, 2))
    if not hasattr(torch.nn.functional, "grouped_mm"):
        pytest.skip("this torch has no grouped_mm")
    assert at_once(torch.ones(2, 8), torch.ones(3, 16, 8).transpose(1, 2))
    assert not at_once(torch.ones(2, 5), torch.ones(3, 7, 5).transpose(1, 2))  # not aligned
    assert not at_once(torch.ones(2, 8).double(), torch.ones(3, 8, 8).double())
    assert not at_once(torch.ones(0, 8), torch.ones(3, 8, 8))


def test_the_operator_obeys_the_rules_of_its_kind() -> None:
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)
    torch.library.opcheck(
        grouped, (rows, weight, ends), test_utils=("test_schema", "test_faketensor")
    )
    assert torch.autograd.gradcheck(grouped, (rows, weight, ends))
