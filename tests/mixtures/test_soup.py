"""SoupLinear against experts written out one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from intarsia.core.errors import ShapeError
from intarsia.mixtures import SoupLinear

from ..refusals import refused


def soup(experts: int = 3, active: int = 1, *, bias: bool = True, seed: int = 0) -> SoupLinear:
    """A layer in float64 whose experts have parted."""
    layer = SoupLinear(nn.Linear(3, 5, bias, dtype=torch.float64), experts, active=active)
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return layer


@given(st.integers(1, 5), st.sampled_from([1, 2, 6]), st.booleans(), st.integers(0, 99), st.data())
def test_a_row_gets_the_mean_of_its_experts(
    experts: int, groups: int, bias: bool, seed: int, data: st.DataObject
) -> None:
    active = data.draw(st.integers(1, experts))
    layer = soup(experts, active, bias=bias, seed=seed)
    index = torch.rand(groups, experts).topk(active).indices
    gates = torch.zeros(groups, experts).scatter_(1, index, 1.0)
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    rows = []
    for row in range(6):
        indices = index[row // (6 // groups)].tolist()
        biases = [None if layer.biases is None else layer.biases[i] for i in indices]
        outputs = [
            F.linear(x[row], layer.weights[i], b) for i, b in zip(indices, biases, strict=True)
        ]
        rows.append(torch.stack(outputs).mean(0))
    fast, naive = layer(x, gates), torch.stack(rows)
    assert_close(fast, naive)
    inputs = [x, *layer.parameters()]
    ours, theirs = (torch.autograd.grad(y.sin().sum(), inputs) for y in (fast, naive))
    assert_close(ours, theirs)


def test_the_merge_is_the_mean_of_all() -> None:
    for bias in (True, False):
        layer = soup(bias=bias)
        x = torch.randn(4, 2, 3, dtype=torch.float64)
        singles = torch.stack([layer(x, gate[None]) for gate in torch.eye(3)])
        assert_close(layer(x), singles.mean(0))
        assert_close(layer.merged()(x), singles.mean(0))


def test_merging_draws_nothing() -> None:
    before = torch.get_rng_state()
    layer = soup()
    state = torch.get_rng_state()
    layer.merged()
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)


def test_an_empty_batch_gives_an_empty_output() -> None:
    assert soup()(torch.zeros(0, 2, 3).double(), torch.zeros(0, 3)).shape == (0, 2, 5)


@pytest.mark.parametrize("shape", [(4, 3), (2, 4), (0, 3)])
def test_gates_that_do_not_fit_are_refused(shape: tuple[int, int]) -> None:
    with refused(ShapeError, what="gates", want="(G, 3) with G a divisor of the rows"):
        soup()(torch.zeros(6, 3).double(), torch.zeros(shape))
