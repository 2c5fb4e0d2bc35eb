"""The sorted dispatch is the dense mixture, values and gradients, whatever the routing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.core import Routing
from intarsia.mixtures.dispatch import Slices, mix_naive


def experts(count: int, inputs: int = 5, outputs: int = 7) -> list[nn.Linear]:
    return [nn.Linear(inputs, outputs).double() for _ in range(count)]


def routing(kind: str, tokens: int, count: int) -> Routing:
    logits = torch.randn(tokens, count, dtype=torch.float64)
    weight, index = logits.softmax(-1).topk(min(2, count))
    if kind == "one expert":
        index = torch.full_like(index[:, :1], count - 1)
        weight = weight[:, :1]
    whole = Routing.from_topk(index, weight.requires_grad_(), count)
    if kind != "some without":
        return whole
    keep = torch.arange(len(whole.token)) % 3 > 0
    return Routing(whole.token[keep], whole.expert[keep], whole.weight[keep], tokens, count)


@pytest.mark.parametrize("kind", ["two", "one expert", "some without"])
@pytest.mark.parametrize("tokens", [0, 1, 2, 13])
@pytest.mark.parametrize("count", [1, 4])
def test_sorted_is_dense(kind: str, tokens: int, count: int) -> None:
    torch.manual_seed(tokens)
    made, found = experts(count), routing(kind, tokens, count)
    x = torch.randn(tokens, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(tokens, 7, dtype=torch.float64)
    results: list[tuple[Tensor, ...]] = []
    fast, twice = torch.ones_like(scale), torch.zeros_like(scale)
    Slices.of(found).add_mix(x, (fast, made), (twice, made))
    assert torch.allclose(twice, fast - 1)
    for y in (fast, 1 + mix_naive(x, found, made)):
        leaves = (x, found.weight, *(p for expert in made for p in expert.parameters()))
        results.append((y, *torch.autograd.grad((y * scale).sum(), leaves)))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)


def test_an_expert_without_rows_has_a_gradient_of_zero() -> None:
    made = experts(3)
    found = routing("one expert", 4, 3)
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.zeros(4, 7, dtype=torch.float64)
    Slices.of(found).add_mix(x, (y, made))
    y.sum().backward()
    for e in range(3):
        gradient = made[e].get_parameter("weight").grad
        assert gradient is not None and bool(gradient.any()) == (e == 2)


def test_pairs_are_sorted_by_expert_and_keep_their_order() -> None:
    index = torch.tensor([[1], [0], [1], [0]])
    slices = Slices.of(Routing.from_topk(index, torch.arange(4.0)[:, None], 3))
    assert [w.tolist() for w in slices.weights] == [[1, 3], [0, 2], []]
    assert [t.tolist() for t in slices.tokens] == [[1, 3], [0, 2], []]
