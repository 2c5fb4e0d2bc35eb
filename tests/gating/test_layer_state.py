"""A thread along the depth: order, restart, checkpointing, copies, and hosts that see to it."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from intarsia.core.errors import ConfigError, ShapeError
from intarsia.gating import LayerState, PassesState, join, start

from ..refusals import refused


class Sum(PassesState):
    """Leaves s^2 + w x, and says it."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        before = self.carried(len(x))
        state = self.weight * x if before is None else before.square() + self.weight * x
        self.carry(state)
        return state


class Other(Sum):
    pass


def stack(count: int = 3) -> nn.Sequential:
    model = nn.Sequential(*(Sum(1.0 + i) for i in range(count)))
    join(model)
    return model


def run(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    start(model)
    return [layer(x) for layer in model]


def test_each_layer_meets_what_the_one_before_left_and_the_first_nothing() -> None:
    model, x = stack(), torch.ones(2, 1, dtype=torch.float64)
    for _ in range(2):  # nothing stale in the second forward
        assert [y[0].item() for y in run(model, x)] == [1, 3, 12]
    start(model)
    assert model[2](x)[0].item() == 3  # layers that did not run left nothing
    assert model[2](x)[0].item() == 3  # nor does a layer meet itself


def test_kinds_are_threads_apart_and_a_second_join_changes_nothing() -> None:
    model = nn.Sequential(Sum(), Other(), Sum(), Other())
    assert len(join(model).states) == 2 and not join(nn.Sequential(nn.ReLU())).states
    before = [(m.thread, m.layer) for m in model if isinstance(m, PassesState)]
    assert [layer for _, layer in before] == [0, 0, 1, 1]
    assert before[0][0] is before[2][0] is not before[1][0] is before[3][0]
    model.append(Sum())
    join(model)
    assert [(m.thread, m.layer) for m in model[:4] if isinstance(m, PassesState)] == before
    added = model[4]
    assert isinstance(added, Sum) and added.layer == 0 and added.thread is not before[0][0]


def grads(model: nn.Sequential, reentrant: bool | None) -> list[Tensor]:
    x = torch.arange(3, dtype=torch.float64)[:, None].requires_grad_()
    start(model)
    h = x
    for layer in model:
        call = layer if reentrant is None else partial(checkpoint, layer, use_reentrant=reentrant)
        h = call(h) + h
    h.square().sum().backward()
    assert x.grad is not None
    found = [x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
    assert len(found) == 4
    return found


def test_checkpointing_meets_the_same_states_and_passes_gradients_along_the_thread() -> None:
    for ours, want in zip(grads(stack(), False), grads(stack(), None), strict=True):
        assert_close(ours, want)


def test_checkpointing_that_would_lose_gradients_is_refused() -> None:
    with refused(ConfigError, what="state of the layer before"):
        grads(stack(), True)


def test_one_pass_of_no_layers_and_evaluation_without_gradients_are_fine() -> None:
    model, x = stack(), torch.ones(0, 1, dtype=torch.float64)
    with torch.no_grad():
        assert run(model, x)[2].shape == (0, 1)
    assert run(model, torch.ones(4, 1, dtype=torch.float64))[2].requires_grad


def test_other_rows_are_refused() -> None:
    model = stack()
    run(model, torch.ones(2, 1, dtype=torch.float64))
    with refused(ShapeError, what="state of the layer before"):
        model[1](torch.ones(3, 1, dtype=torch.float64))


def test_several_that_were_never_joined_are_refused() -> None:
    start(nn.Sequential(Sum(), Other()))
    with refused(ConfigError, what="Sums"):
        start(nn.Sequential(Sum(), Sum()))


def test_a_copy_has_a_thread_of_its_own_without_states() -> None:
    model, x = stack(), torch.ones(2, 1, dtype=torch.float64)
    run(model, x)
    other = copy.deepcopy(model)
    first, second = other[0], other[1]
    assert isinstance(first, Sum) and isinstance(second, Sum)
    assert first.thread is second.thread is not model[0].thread
    assert isinstance(first.thread, LayerState) and first.thread.left(0) is None
    assert [y[0].item() for y in run(other, x)] == [1, 3, 12]
