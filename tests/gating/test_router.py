"""Routers: what they know beside their input, the losses they leave, and how they share out."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from intarsia.core import Routing
from intarsia.core.errors import ConfigError, ShapeError
from intarsia.gating import (
    Router,
    aux_loss,
    balance,
    entropy,
    learned_routers,
    set_valid,
    task_ids,
    z_loss,
)
from intarsia.gating import load as statistics
from intarsia.routers import TopK

from ..refusals import refused


class First(Router):
    """Every valid row goes to expert 0, and the loss is the mean of the rows."""

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        keep = torch.arange(len(rows)) if valid is None else valid.nonzero()[:, 0]
        index = torch.zeros(len(keep), dtype=torch.int64)
        losses = {"mean": rows[keep].mean()}
        return Routing(keep, index, torch.ones(len(keep)), len(rows), self.experts, losses)


def _topk(probs: Tensor, k: int) -> Routing:
    weight, index = probs.topk(k)
    return Routing.from_topk(index, weight, probs.shape[1])


def test_padding_gets_no_expert_and_the_mask_must_fit() -> None:
    model = nn.Sequential(First(3))
    set_valid(model, torch.tensor([[1, 1, 0], [1, 0, 0]]))
    routing = model(torch.ones(2, 3, 4))
    assert routing.token.tolist() == [0, 1, 3] and routing.tokens == 6
    # while generating, x holds the newest token only
    assert model(torch.ones(2, 1, 4)).token.tolist() == []
    with refused(ShapeError, what="attention mask"):
        model(torch.ones(3, 3, 4))
    set_valid(model, None)
    assert len(model(torch.ones(2, 3, 4)).token) == 6


def test_auxiliary_losses_are_those_of_the_newest_training_forward() -> None:
    model = nn.Sequential(First(2))
    assert float(aux_loss(model)) == 0
    x = torch.full((2, 4), 3.0, requires_grad=True)
    model(x)
    loss = aux_loss(model)
    loss.backward()
    assert loss.item() == 3 and x.grad is not None and float(x.grad.sum()) == pytest.approx(1)
    model.eval()(x * 7)
    assert aux_loss(model).item() == 3
    copied = copy.deepcopy(model)  # a graph could not be copied
    assert float(aux_loss(copied)) == 0


def test_task_ids_hold_inside_the_context_and_are_vectors() -> None:
    model = nn.Sequential(First(2))
    router = model[0]
    with task_ids(model, torch.tensor([0, 1])):
        assert router.context.task_ids is not None
        with task_ids(model, torch.tensor([1])):
            assert router.context.task_ids.tolist() == [1]
        assert router.context.task_ids.tolist() == [0, 1]
    assert router.context.task_ids is None
    for wrong in (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2)):
        with (
            refused(ConfigError, what="task_ids", want="one whole number for each sample"),
            task_ids(model, wrong),
        ):
            pass
    with refused(ConfigError, what="experts", got=0):
        First(0)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_balance_is_k_when_even_and_e_k_at_collapse(k: int, times: int, seed: int) -> None:
    experts = 4
    even = torch.full((experts * times, experts), 1 / experts)
    index = (torch.arange(experts * times)[:, None] + torch.arange(k)) % experts
    routing = Routing.from_topk(index, torch.ones_like(index, dtype=torch.float32), experts)
    assert float(balance(even, routing)) == pytest.approx(k)
    one = torch.zeros(times, experts)
    one[:, 1] = 1.0
    assert float(balance(one, _topk(one, 1))) == pytest.approx(experts)
    # never below its value at uniform probabilities, for any probabilities that agree with the load
    probs = torch.rand(16, experts, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    full = Routing.from_dense(probs)
    assert float(balance(probs, full)) == pytest.approx(experts, rel=1e-5)


def test_padding_counts_in_no_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator)
    probs = logits.softmax(-1)
    valid = torch.tensor([True, True, True, False, False])
    weight, index = probs[:3].topk(1)
    short = Routing.from_topk(index, weight, 3)
    padded = Routing(short.token, short.expert, short.weight, 5, 3)
    torch.testing.assert_close(balance(probs, padded, valid), balance(probs[:3], short))
    torch.testing.assert_close(z_loss(logits, valid), z_loss(logits[:3]))
    none = torch.zeros(5, dtype=torch.bool)
    empty = Routing.from_topk(index[:0], weight[:0], 3)
    assert float(balance(probs, empty, none)) == 0 and float(z_loss(logits, none)) == 0


def test_balance_is_that_of_transformers() -> None:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    want = load_balancing_loss_func((logits,), 4, 2)
    probs = logits.softmax(-1)
    torch.testing.assert_close(balance(probs, _topk(probs, 2)), want)


def test_entropy_is_log_e_when_even_and_zero_for_one() -> None:
    assert float(entropy(torch.full((4,), 0.25))) == pytest.approx(1.3862944)
    assert float(entropy(torch.tensor([1.0, 0.0]))) == 0


def test_loads_are_shares_and_collapse_is_said_once() -> None:
    model = nn.Sequential(First(4))
    model(torch.ones(6, 2))
    found = statistics.loads(model)
    assert list(found) == list(learned_routers(model))
    load = found["0"]
    assert load.share == (1, 0, 0, 0) and load.collapsed and load.entropy == 0
    assert load.variation == pytest.approx(3**0.5)
    assert statistics.summary(found) == {
        "load_variation": load.variation,
        "load_entropy": load.entropy,
    }
    with pytest.warns(statistics.CollapseWarning, match="balance"):
        assert statistics.warn_of_collapse(found)
    statistics.forget(model)
    assert statistics.loads(model) == {} and statistics.summary({}) == {}
    even = statistics.Load((0.25,) * 4)
    assert even.variation == 0 and even.entropy == pytest.approx(1) and not even.collapsed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not statistics.warn_of_collapse({"a": even, "b": statistics.Load((1.0,))})


@pytest.mark.parametrize("active", [1, 2, 3])
def test_always_the_same_k_of_more_is_a_collapse_whatever_k_is(active: int) -> None:
    router = TopK(4, active, scale="none", bias=True).build(2, generator=torch.Generator())
    assert router.bias is not None
    with torch.no_grad():
        router.bias.copy_(torch.tensor([9.0, 8.0, 7.0, 6.0]))  # the first k for every row
    router(torch.zeros(1, 10, 2))
    found = statistics.loads(nn.ModuleList([router]))
    assert found["0"].active == active and found["0"].collapsed
    few = "one expert" if active == 1 else f"the same {active} experts"
    with pytest.warns(statistics.CollapseWarning, match=f"100% to {few} of 4. Raise .* balance"):
        assert statistics.warn_of_collapse(found)
    statistics.forget(router)
    with torch.no_grad():
        router.bias.zero_()
        router.weight.copy_(torch.tensor([[9.0, 0], [0, 9], [-9, 0], [0, -9]]))
    router(torch.randn(1, 200, 2, generator=torch.Generator().manual_seed(0)))
    assert not statistics.loads(nn.ModuleList([router]))["0"].collapsed


def test_jitter_is_drawn_in_float32() -> None:
    router = TopK(4, jitter=0.001).build(8, generator=torch.Generator().manual_seed(0)).train()
    x = torch.ones(2000, 8, dtype=torch.bfloat16)
    seen: list[Tensor] = []
    logits = router.logits

    def watched(rows: Tensor) -> Tensor:
        seen.append(rows)
        return logits(rows)

    router.logits = watched  # type: ignore[method-assign]
    torch.manual_seed(0)
    router(x)
    factors = seen[0].double()
    assert 0.999 <= factors.min() < 0.9992 and 1.0008 < factors.max() <= 1.001
    assert abs(factors.mean() - 1) < 1e-4


def test_even_pairs_are_an_even_load_whatever_they_weigh() -> None:
    router = First(2).train()
    router.received, router.served = torch.tensor([[5.0, 5.0], [4.0, 1.0]]).double(), 10
    (load,) = statistics.loads(nn.Sequential(router)).values()
    assert load.share == (0.5, 0.5) and load.active == 1
    router.served = 5  # every row has both: only weights tell them apart
    (load,) = statistics.loads(nn.Sequential(router)).values()
    assert load.share == (0.8, 0.2)
