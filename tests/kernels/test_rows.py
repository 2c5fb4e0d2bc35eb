"""Experts on their rows are the dense mixture, values and gradients, whatever the routing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.kernels.experts import (
    AllTokens,
    Slices,
    Weighted,
    add_mix,
    by_expert,
    ends_of,
    group_pairs,
    mix_naive,
)

Pairs = tuple[Tensor, Tensor, Tensor]  # token, expert, weight


def experts(count: int, dtype: torch.dtype = torch.float64) -> list[nn.Linear]:
    return [nn.Linear(5, 7).to(dtype) for _ in range(count)]


def weighted(linears: list[nn.Linear]) -> list[Weighted]:
    return [lambda x, weight, f=f: f(x) * weight[:, None] for f in linears]


def pairs(kind: str, tokens: int, count: int, dtype: torch.dtype = torch.float64) -> Pairs:
    weight, index = torch.randn(tokens, count, dtype=dtype).softmax(-1).topk(min(2, count))
    if kind == "one expert":
        index, weight = torch.full_like(index[:, :1], count - 1), weight[:, :1]
    token = torch.arange(tokens)[:, None].expand_as(index).flatten()
    keep = torch.arange(len(token)) % 3 > (0 if kind == "some without" else -1)
    weight = weight.flatten()[keep].requires_grad_()
    return token[keep], index.flatten()[keep], weight


def gates(triple: Pairs, tokens: int, count: int) -> Tensor:
    token, expert, weight = triple
    dense = weight.new_zeros(tokens, count)
    return dense.index_put((token, expert), weight, accumulate=True)


def ways(triple: Pairs, tokens: int, count: int) -> tuple[Slices | AllTokens, ...]:
    return group_pairs(*triple, tokens, count), AllTokens(gates(triple, tokens, count).unbind(1))


@pytest.mark.parametrize("kind", ["two", "one expert", "some without"])
@pytest.mark.parametrize("tokens", [0, 1, 2, 13])
@pytest.mark.parametrize("count", [1, 4])
def test_both_ways_are_the_naive_twin(kind: str, tokens: int, count: int) -> None:
    torch.manual_seed(tokens)
    linears, triple = experts(count), pairs(kind, tokens, count)
    x = torch.randn(tokens, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(tokens, 7, dtype=torch.float64)
    leaves = (x, triple[2], *(p for expert in linears for p in expert.parameters()))

    def with_grads(y: Tensor) -> tuple[Tensor, ...]:
        return y, *torch.autograd.grad((y * scale).sum(), leaves)

    want = with_grads(1 + mix_naive(x, gates(triple, tokens, count), linears))
    for grouped in ways(triple, tokens, count):
        fast, twice = torch.ones_like(scale), torch.zeros_like(scale)
        add_mix(grouped, x, (fast, weighted(linears)), (twice, weighted(linears)))
        assert torch.allclose(twice, fast - 1)
        for ours, theirs in zip(with_grads(fast), want, strict=True):
            assert_close(ours, theirs)


def test_half_precision_adds_up_in_the_type_of_the_sum() -> None:
    torch.manual_seed(0)
    linears, triple = experts(4, torch.bfloat16), pairs("two", 13, 4, torch.bfloat16)
    x = torch.randn(13, 5, dtype=torch.bfloat16)
    want = mix_naive(x.float(), gates(triple, 13, 4).float(), [f.float() for f in linears])
    for grouped in ways(triple, 13, 4):
        y = torch.zeros(13, 7)
        add_mix(grouped, x, (y, weighted([f.bfloat16() for f in linears])))
        assert (y - want).norm() <= 0.02 * want.norm()


def test_an_expert_without_rows_has_a_gradient_of_zero() -> None:
    for way in range(2):
        linears, triple = experts(3), pairs("one expert", 4, 3)
        x, y = torch.randn(4, 5, dtype=torch.float64), torch.zeros(4, 7, dtype=torch.float64)
        add_mix(ways(triple, 4, 3)[way], x, (y, weighted(linears)))
        y.sum().backward()
        for e in range(3):
            gradient = linears[e].get_parameter("weight").grad
            assert gradient is not None and bool(gradient.any()) == (e == 2)


@given(st.lists(st.integers(0, 4), max_size=30))
def test_pairs_are_sorted_by_expert_and_keep_their_order(experts_of: list[int]) -> None:
    expert = torch.tensor(experts_of, dtype=torch.int64)
    sorted_pairs = by_expert(expert, 5)
    naive = sorted(range(len(experts_of)), key=lambda n: experts_of[n])  # stable
    assert sorted_pairs.order.tolist() == naive
    assert sorted_pairs.expert.tolist() == sorted(experts_of)
    assert sorted_pairs.load.tolist() == [experts_of.count(e) for e in range(5)]
    assert sorted_pairs.ends.tolist() == sorted_pairs.load.cumsum(0).tolist()
    assert torch.equal(ends_of(sorted_pairs.expert, 5), sorted_pairs.ends)


def test_tokens_without_an_expert_are_found() -> None:
    token, expert = torch.tensor([3, 0, 3]), torch.tensor([1, 0, 0])
    grouped = group_pairs(token, expert, torch.ones(3), 5, 2)
    assert isinstance(grouped.idle(5), Tensor) and grouped.idle(5).tolist() == [1, 2, 4]  # type: ignore[union-attr]
    meta = group_pairs(token.to("meta"), expert.to("meta"), torch.ones(3, device="meta"), 5, 2)
    assert isinstance(meta, AllTokens) and meta.idle(5) == slice(None)
