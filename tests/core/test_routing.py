"""Every way to build a Routing gives the same matrix back."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from intarsia.core import Routing
from intarsia.core.errors import ShapeError

from ..refusals import refused


@st.composite
def gate_matrices(draw: st.DrawFn) -> Tensor:
    tokens, experts = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    values = st.sampled_from([0.0, 0.0, 0.5, -1.0, 2.0])
    flat = draw(st.lists(values, min_size=tokens * experts, max_size=tokens * experts))
    return torch.tensor(flat, dtype=torch.float64).reshape(tokens, experts)


@given(gate_matrices())
def test_dense_and_back(gates: Tensor) -> None:
    routing = Routing.from_dense(gates)
    assert torch.equal(routing.dense(), gates)
    assert routing.token.numel() == int((gates != 0).sum())


@given(gate_matrices())
def test_load_counts_pairs(gates: Tensor) -> None:
    load = Routing.from_dense(gates).load()
    assert load.dtype == torch.int64
    assert torch.equal(load, (gates != 0).sum(0))


@given(st.integers(0, 6), st.integers(1, 5), st.data())
def test_top_k_is_what_was_chosen(tokens: int, experts: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, experts))
    seed = data.draw(st.integers(0, 2**31))
    score = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed))
    weight, index = score.topk(k)
    routing = Routing.from_topk(index, weight, experts)
    expected = torch.zeros(tokens, experts).scatter(1, index, weight)
    assert torch.equal(routing.dense(), expected)
    again = Routing.from_dense(routing.dense())
    assert torch.equal(again.dense(), expected)
    assert int(routing.load().sum()) == tokens * k


def test_entries_given_twice_add_up() -> None:
    twice = torch.tensor([0, 0])
    routing = Routing(twice, torch.tensor([1, 1]), torch.tensor([0.25, 0.5]), 1, 3)
    assert routing.dense().tolist() == [[0.0, 0.75, 0.0]]
    assert routing.load().tolist() == [0, 2, 0]


def test_dense_has_the_gradient_of_the_weights() -> None:
    weight = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 2], [1, 0], [2, 1]])
    assert torch.autograd.gradcheck(lambda w: Routing.from_topk(index, w, 4).dense(), (weight,))


def test_losses_and_state_travel_along() -> None:
    losses, state = {"balance": torch.tensor(1.0)}, torch.ones(2)
    index, weight = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)
    for routing in (
        Routing.from_topk(index, weight, 3, losses, state),
        Routing.from_dense(torch.eye(3), losses, state),
    ):
        assert routing.losses == losses
        assert routing.state is state
    assert dict(Routing.from_dense(torch.eye(2)).losses) == {}


def test_shapes_that_do_not_fit_are_refused() -> None:
    single, two = torch.zeros(1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    with refused(ShapeError, what="routing", got="(1,), (2,), (1,)"):
        Routing(single, two, torch.ones(1), 1, 1)
    with refused(ShapeError, what="routing", got="(1, 1), (1, 1), (1, 1)"):
        Routing(single[None], single[None], torch.ones(1, 1), 1, 1)
    with refused(ShapeError, what="top-k routing"):
        Routing.from_topk(two, torch.ones(2), 3)
    with refused(ShapeError, what="top-k routing"):
        Routing.from_topk(two[:, None], torch.ones(2, 2), 3)
    with refused(ShapeError, what="gates", got=(2,)):
        Routing.from_dense(torch.ones(2))
