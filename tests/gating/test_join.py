"""One `Context` for a model: who shares it, and how a forward sets it."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from intarsia import TopK
from intarsia.core.errors import ConfigError
from intarsia.gating import (
    ReadsContext,
    aux_loss,
    before_step,
    contexts,
    having,
    join,
    of_samples,
    redraw,
    rejoin,
    set_ids,
    set_valid,
    start,
    task_ids,
    unwatch,
    watch,
)
from intarsia.mixtures import Mixture, StackedExperts
from intarsia.routers import EvoMoe, Hash, NoisyTopK, PermutationSearch, Recurrent

from ..refusals import refused


class Host(nn.Module):
    """Reads ids (B, T) and takes its mask among the rest."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        experts = StackedExperts(4, 6, 5, generator=draw)
        self.mixture = Mixture(experts, Hash(experts=4).build(6, generator=draw))

    def forward(self, input_ids: Tensor, positions: Tensor, **kwargs: Any) -> None: ...


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_mask_among_the_rest_is_seen_beside_positional_arguments(count: int) -> None:
    model, ids = Host(), torch.arange(6).view(2, 3)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    named = {"input_ids": ids, "positions": ids}
    kwargs = {name: t for i, (name, t) in enumerate(named.items()) if i >= count}
    args = tuple(named.values())[:count]
    watch(model)
    model(*args, **kwargs, attention_mask=mask)
    context = model.mixture.router.context
    assert context.valid is not None and context.valid.tolist() == mask.bool().tolist()
    assert context.input_ids is not None and torch.equal(context.input_ids, ids)


def routed(*configs: Any, seed: int = 0) -> Any:
    """Mixtures in a row, each with its own generator."""
    rows = []
    for number, config in enumerate(configs):
        draw = torch.Generator().manual_seed(seed + number)
        experts = StackedExperts(4, 6, 5, generator=draw)
        rows.append(Mixture(experts, config.build(6, generator=draw)))
    return nn.Sequential(*rows)


def test_a_model_has_one_context_and_a_module_alone_its_own() -> None:
    model = routed(TopK(4), NoisyTopK(4), PermutationSearch(NoisyTopK(4)))
    assert len(contexts(model)) > 1
    context = join(model)
    assert contexts(model) == [context]
    for name, module in model.named_modules():
        if isinstance(module, ReadsContext):
            assert module.context is context, name
    model.append(routed(TopK(4))[0])
    assert len(contexts(model)) == 2
    assert join(model) is context and contexts(model) == [context]


def test_a_pass_begins_for_every_context_of_a_model_whose_routers_share_none() -> None:
    model = routed(NoisyTopK(4), NoisyTopK(4)).train()
    for context in contexts(model):
        context.hold = True
    model(torch.randn(3, 6))
    held = [context.held for context in contexts(model) if context.held]
    assert len(held) == 2
    start(model)
    assert not any(held)


def test_parts_of_other_models_take_the_context_of_the_model_they_come_into() -> None:
    donor, model = routed(TopK(4)), routed(TopK(4))
    watch(donor)
    watch(model)
    (mine,) = contexts(model)
    model.insert(0, donor[0])
    assert join(model) is mine and contexts(model) == [mine]
    model(torch.randn(3, 6))
    assert mine.routings.keys() == {m.router for m in model}


def test_models_do_not_share() -> None:
    first, second = routed(NoisyTopK(4)), routed(NoisyTopK(4))
    for model in (first, second):
        watch(model)
    with task_ids(first, torch.tensor([1])):
        assert first[0].router.context.task_ids is not None
        assert second[0].router.context.task_ids is None
    first.train()(torch.randn(3, 6))
    assert first[0].router.noise.held is not None and second[0].router.noise.held is None


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_one_context_of_its_own_without_the_batch(way: Any) -> None:
    model = routed(NoisyTopK(4), Recurrent(4, hidden=3), NoisyTopK(4)).train()
    watch(model)
    x = torch.randn(5, 6)
    model(x).sum().backward()
    set_valid(model, torch.ones(1, 5))
    set_ids(model, torch.arange(5))
    (was,) = contexts(model)
    with task_ids(model, torch.arange(5)):
        twin = way(model)
    (now,) = contexts(twin)
    assert now is not was and now.hold and now.joined
    assert (now.valid, now.task_ids, now.ids, now.input_ids) == (None,) * 4
    assert not now.held and not now.routings and was.held and was.routings
    assert torch.equal(twin(x), model(x))  # its own hook sets its own context
    assert now.held.keys() == {twin[0].router.noise, twin[2].router.noise}
    assert not any("context" in key for key in model.state_dict())


def test_a_recomputation_meets_the_draws_and_the_tasks_of_its_forward() -> None:
    model = routed(NoisyTopK(4), EvoMoe(4)).double().train()
    watch(model)
    x, grads = torch.randn(7, 6, dtype=torch.float64), []
    for way in (lambda f, h: f(h), lambda f, h: checkpoint(f, h, use_reentrant=False)):
        for number, mixture in enumerate(model):
            mixture.router.noise.generator.manual_seed(number)
        (context,) = contexts(model)
        context.start()
        h = x
        with task_ids(model, torch.arange(7)):
            for mixture in model:
                h = way(mixture, h)
            assert context.tasks() is not None
        assert context.tasks() is not None, "the backward comes after the block"
        h.square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    for ours, theirs in zip(*grads, strict=True):
        assert_close(ours, theirs)
    redraw(model)
    assert contexts(model)[0].tasks() is None


def test_a_router_that_a_forward_does_not_reach_has_no_losses() -> None:
    model = routed(TopK(4), TopK(4)).train()
    watch(model)
    model(torch.randn(5, 6))
    assert all(m.router.last is not None for m in model)
    total = aux_loss(model)
    first = aux_loss(model[0])
    assert 0 < first < total
    model.forward = model[0].forward  # layer drop
    model(torch.randn(5, 6))
    assert model[1].router.last is None and aux_loss(model) == aux_loss(model[0])


def test_some_of_the_samples_are_some_of_all_that_a_batch_carries() -> None:
    model = routed(Hash(4))
    (context,) = contexts(model)
    set_valid(model, torch.tensor([[1, 1], [1, 0], [0, 1]]))
    set_ids(model, torch.tensor([[1, 2], [3, 4], [5, 6]]))
    selected = torch.tensor([True, False, True])
    with task_ids(model, torch.arange(3)), of_samples(model, selected):
        assert context.task_ids is not None and context.task_ids.tolist() == [0, 2]
        assert context.valid is not None and context.valid.tolist() == [[1, 1], [0, 1]]
        assert context.ids is not None and context.ids.tolist() == [[1, 2], [5, 6]]
        with having(model, valid=None):
            model(torch.randn(2, 2, 6))
    assert context.ids.tolist() == [[1, 2], [3, 4], [5, 6]] and len(context.valid) == 3


def test_the_hook_goes_with_the_adapters_unless_it_stays() -> None:
    model = routed(TopK(4))
    undo = watch(model)
    assert len(model._forward_pre_hooks) == 1
    watch(model)
    assert len(model._forward_pre_hooks) == 1
    undo()
    assert not model._forward_pre_hooks
    watch(model)
    watch(model, stays=True)
    unwatch(model)
    assert len(model._forward_pre_hooks) == 1
    unwatch(model, all=True)
    assert not model._forward_pre_hooks and not model._forward_pre_hooks_with_kwargs
    plain = nn.Linear(2, 2)
    watch(plain)
    assert not plain._forward_pre_hooks


def test_threads_compute_models_of_their_own() -> None:
    def run(seed: int) -> list[Tensor]:
        model = routed(NoisyTopK(4), NoisyTopK(4), seed=seed).train()
        watch(model)
        return [model(torch.full((5, 6), 0.1 * i)).detach() for i in range(20)]

    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(run, (0, 7)))
    for output, seed in zip(outputs, (0, 7), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(output, run(seed), strict=True))


def test_before_step_reaches_every_module_that_changes_along_a_run() -> None:
    search = PermutationSearch(EvoMoe(4, tau=(2.0, 1.0), until=1.0), steps=3)
    model = routed(search, TopK(4))
    before_step(model, 2, 10)
    router = model[0].router
    assert int(router.step) == 2 and router.gate.clock.tolist() == [2, 10]
    assert not router.is_final
    before_step(model, 3, 10)
    assert router.is_final
    with refused(ConfigError, what="step", got=10):
        before_step(model, 10, 10)


def test_layers_that_remain_are_numbered_again_in_each_thread_of_its_own() -> None:
    first, second = (routed(*[Recurrent(4, hidden=3)] * 3, seed=seed) for seed in (0, 1))
    join(first)
    join(second)
    model = nn.Sequential(*first, *second)
    del model[0]
    context = rejoin(model)
    routers = [mixture.router for mixture in model]
    assert [router.layer for router in routers] == [0, 1, 0, 1, 2]
    first_cells, second_cells = routers[:2], routers[2:]
    for some in (first_cells, second_cells):
        assert len({id(router._cell[0]) for router in some}) == 1
        assert len({id(router.thread) for router in some}) == 1
    assert first_cells[0].thread is not second_cells[0].thread
    assert contexts(model) == [context]
