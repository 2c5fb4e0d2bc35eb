"""Task routing: shares of skills by task, drawn in training, held when it is computed again."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

import intarsia
from intarsia.core.errors import ConfigError, ShapeError
from intarsia.gating import passes, random_sources, redraw
from intarsia.routers import TaskRouter
from intarsia.train.randomness import generator_states, set_generator_states

from ..refusals import refused


def router(
    tasks: int = 4,
    skills: int = 3,
    heads: int = 2,
    *,
    noise: bool = True,
    unknown: str = "error",
    seed: int = 0,
) -> TaskRouter:
    generator = torch.Generator().manual_seed(seed)
    gate = TaskRouter(
        tasks, skills, heads, noise=noise, unknown=unknown, generator=generator
    ).double()
    nn.init.normal_(gate.logits, generator=generator)
    return gate


def rows(count: int) -> Tensor:
    return torch.zeros(count, 5, dtype=torch.float64)


def gates(gate: TaskRouter, ids: list[int], count: int | None = None) -> Tensor:
    """(rows, heads, skills)."""
    with intarsia.gating.task_ids(gate, torch.tensor(ids, dtype=torch.int64)):
        routing = gate(rows(len(ids) if count is None else count))
    return routing.dense().view(-1, gate.heads, gate.experts)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.data())
def test_in_evaluation_a_sample_gets_the_shares_of_its_task(
    tasks: int, skills: int, heads: int, data: st.DataObject
) -> None:
    gate = router(tasks, skills, heads).eval()
    ids = data.draw(st.lists(st.integers(0, tasks - 1), max_size=5))
    got = gates(gate, ids)
    assert got.shape == (len(ids), heads, skills)
    for row, task in zip(got, ids, strict=True):
        for q in range(heads):
            odds = [float(torch.sigmoid(z)) for z in gate.logits[task, q].detach()]
            assert_close(row[q], torch.tensor([o / sum(odds) for o in odds]).double())
        assert_close(row, gate.of_task(task))
    assert torch.equal(gates(gate, ids), got)  # without chance


def test_training_draws_the_relaxed_bernoulli_of_the_paper() -> None:
    gate = router(2, 3, 2).train()
    ids = [0, 1] * 4000
    got = gates(gate, ids)
    assert_close(got.sum(-1), torch.ones_like(got[..., 0]))
    torch.manual_seed(0)
    law = torch.distributions.RelaxedBernoulli(torch.tensor(1.0), logits=gate.logits.detach())
    raw = law.sample(torch.Size([4000]))
    want = raw / raw.sum(-1, keepdim=True)  # (4000, tasks, heads, skills)
    for task in range(2):
        drawn = got[task::2].detach()
        assert_close(drawn.mean(0), want[:, task].mean(0), atol=0.02, rtol=0)
        assert_close(drawn.std(0), want[:, task].std(0), atol=0.02, rtol=0)
    assert not torch.equal(got[0], got[2])  # each sample has its own


def test_without_noise_training_is_evaluation() -> None:
    gate = TaskRouter(2, 3, 2, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(gate.logits)
    assert not random_sources(gate)
    assert torch.equal(gates(gate.train(), [0, 1]), gates(gate.eval(), [0, 1]))


def test_a_task_gets_its_gradient_from_its_own_rows_only() -> None:
    for mode in (True, False):
        gate = router().train(mode)
        weight = torch.randn(3, 2, 3, dtype=torch.float64)
        (gates(gate, [2, 0, 2]) * weight).sum().backward()
        assert gate.logits.grad is not None
        reached = gate.logits.grad.flatten(1).any(1)
        assert reached.tolist() == [True, False, True, False]


def test_windows_of_a_sample_share_its_task_and_its_draw() -> None:
    for mode in (True, False):
        gate = router().train(mode)
        got = gates(gate, [3, 1], count=6)
        assert torch.equal(got[:3], got[:1].expand(3, -1, -1))
        assert torch.equal(got[3:], got[3:4].expand(3, -1, -1))
        assert not torch.equal(got[0], got[3])


def test_a_held_draw_and_its_tasks_stay_until_it_is_redrawn() -> None:
    gate = router().train()
    gate.context.hold = True
    first = gates(gate, [0, 3])
    # gradient checkpointing computes again when the context is over
    assert torch.equal(gate(rows(2)).dense().view_as(first), first)
    redraw(gate)
    with refused(ConfigError, what="task_ids", got="none"):
        gate(rows(2))
    assert not torch.equal(gates(gate, [0, 3]), first)


def test_stacked_copies_are_drawn_apart_and_shards_are_the_joined_batch() -> None:
    joined, single = router().train(), router().train()
    with passes(joined, 2):
        stacked = gates(joined, [0, 1, 2, 0, 1, 2])
    assert torch.equal(stacked, torch.cat([gates(single, [0, 1, 2]) for _ in range(2)]))
    joined, ranks = router().train(), [router().train() for _ in range(2)]
    for rank, gate in enumerate(ranks):
        gate.context.shard = (rank, 2)
    parts = [gates(gate, ids) for gate, ids in zip(ranks, ([0, 1], [2, 3]), strict=True)]
    assert torch.equal(torch.cat(parts), gates(joined, [0, 1, 2, 3]))


def test_the_state_of_its_generator_is_saved_and_set() -> None:
    gate = router().train()
    assert list(random_sources(gate)) == ["noise"]
    states = {name: state.clone() for name, state in generator_states(gate).items()}
    first = gates(gate, [0, 1])
    assert not torch.equal(gates(gate, [0, 1]), first)
    set_generator_states(gate, states)
    assert torch.equal(gates(gate, [0, 1]), first)


def test_a_copy_draws_the_same_but_apart() -> None:
    gate = router().train()
    gates(gate, [1])
    twin = copy.deepcopy(gate)
    assert twin.last is None and torch.equal(gates(twin, [0, 1]), gates(gate, [0, 1]))


def test_one_task_needs_no_ids() -> None:
    gate = router(1).eval()
    assert_close(gate(rows(3)).dense().view(3, 2, 3), gate.of_task(0).expand(3, -1, -1))


def test_without_ids_it_is_an_error_or_in_evaluation_the_mean() -> None:
    for gate in (router().eval(), router().train(), router(unknown="mean").train()):
        with refused(ConfigError, what="task_ids", got="none"):
            gate(rows(2))
    gate = router(unknown="mean").eval()
    got = gate(rows(2)).dense().view(2, 2, 3)
    assert_close(got[0], torch.stack([gate.of_task(t) for t in range(4)]).mean(0))
    assert torch.equal(got[0], got[1])


@pytest.mark.parametrize("ids", [[0, 4], [-1, 0]])
def test_ids_that_are_no_tasks_are_refused(ids: list[int]) -> None:
    with refused(ConfigError, what="task_ids", want="0 ... 3"):
        gates(router(), ids)
    with refused(ConfigError, what="task_ids", want="0 ... 3"):
        router().of_task(max(ids, key=abs))


def test_ids_of_another_batch_are_refused() -> None:
    for ids, count in (([0, 1, 2], 4), ([0, 1], 1), ([], 2)):
        with refused(ShapeError, what="task_ids"):
            gates(router(), ids, count)
    gate = router()
    with intarsia.gating.task_ids(gate, torch.tensor([0, 1])):
        gate.context.check_task_ids(2)
        # looks like two windows a sample to a layer, but the model knows its batch
        with refused(ShapeError, what="task_ids"):
            gate.context.check_task_ids(4)


@pytest.mark.parametrize(
    "ids", [torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2), torch.ones(2, dtype=torch.bool)]
)
def test_ids_are_one_whole_number_for_each_sample(ids: Tensor) -> None:
    with (
        refused(ConfigError, what="task_ids", want="one whole number for each sample"),
        intarsia.gating.task_ids(router(), ids),
    ):
        pass


def test_ids_are_put_back() -> None:
    gate = router()
    with intarsia.gating.task_ids(gate, torch.tensor([1])):
        with (
            pytest.raises(RuntimeError, match="stop"),
            intarsia.gating.task_ids(gate, torch.tensor([2])),
        ):
            raise RuntimeError("stop")
        assert gate.context.task_ids is not None and gate.context.task_ids.tolist() == [1]
    assert gate.context.task_ids is None


def test_a_new_task_leaves_the_others_as_they_are() -> None:
    gate = router()
    gate.logits.requires_grad_(False)
    before = gate.logits.clone()
    gate.add_task(torch.Generator().manual_seed(1))
    assert gate.tasks == 5 and torch.equal(gate.logits[:4], before)
    assert 0 < float(gate.logits[4].abs().max()) <= 1e-3 and not gate.logits.requires_grad
    gate = TaskRouter(3, 2, generator=torch.Generator().manual_seed(0))
    assert 5e-4 < float(gate.logits.detach().abs().max()) <= 1e-3


def test_shares_are_at_least_float32_and_finite_at_the_ends() -> None:
    gate = router().bfloat16().train()
    with torch.no_grad():
        gate.logits[0] = -1e4  # no skill at all: shares of zero, not a division by zero
    got = gates(gate, [0, 1])
    assert got.dtype == torch.float32 and torch.isfinite(got).all()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"tasks": 0}, "tasks"),
        ({"skills": 0}, "skills"),
        ({"heads": 0}, "heads"),
        ({"unknown": "guess"}, "unknown"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], field: str) -> None:
    with refused(ConfigError, what=field):
        router(**settings)  # pyright: ignore
