"""The identities the objectives rest on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny import Host, host, pictures, stir
from torch import Tensor, nn

from intarsia.adapters import Bottleneck
from intarsia.core.errors import ConfigError
from intarsia.fitting import fit
from intarsia.methods import Mosa
from intarsia.routers import random_routers
from intarsia.train.objectives import (
    Objective,
    blocks_of,
    local_variance,
    logits_of,
    one_backward,
    plain,
    two_pass,
)
from intarsia.train.outcome import TargetLoss, kl
from intarsia.train.tasks import Tokens
from intarsia.train.tasks.classes import own_task, task_accuracy, task_heads

from ..refusals import refused

EXPERTS = 3


def mosa(draw: str = "batch", blocks: int = 1, dropout: float = 0.0, **settings: object) -> Host:
    over = Bottleneck(4, activation="gelu", norm="none", scale=settings.pop("scale", 1.0))  # pyright: ignore
    method = Mosa(over=over, experts=EXPERTS, draw=draw, **settings)  # pyright: ignore
    model = host(method=method, blocks=blocks, dropout=dropout).double()
    stir(model)
    return model.train()


def batch(count: int = 6) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    x, y = pictures(count).tensors
    return x.double(), partial(_cross_entropy, y)


def _cross_entropy(y: Tensor, logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, y)


def draw(model: nn.Module, *experts: int) -> None:
    """Let the only router of a model draw these experts, one after the other."""
    (router,) = random_routers(model).values()
    queue = iter(experts)
    router._draw = lambda rows: torch.full((rows, 1), next(queue))  # pyright: ignore


def gradient(model: nn.Module, objective: Objective) -> Tensor:
    x, loss_of = batch()
    learns = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(objective(model, x, loss_of).loss, learns, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for p, g in zip(learns, grads, strict=True)
        ]
    )


def test_one_backward_has_the_expected_gradient_of_two_passes() -> None:
    model = mosa()
    totals = []
    for objective, reverse in ((two_pass, False), (one_backward, True)):
        total = torch.zeros(())
        for first, second in itertools.product(range(EXPERTS), repeat=2):
            # one_backward draws its target, the second pass, before the first
            draw(model, *((second, first) if reverse else (first, second)))
            total = total + gradient(model, objective) / EXPERTS**2
        totals.append(total)
    assert totals[0].abs().max() > 0.1
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-12, atol=1e-14)
    draw(model, 0, 1)
    single = gradient(model, one_backward)
    assert not torch.allclose(single, totals[1], rtol=1e-3)  # equal only in expectation


def test_two_passes_in_one_forward_are_two_forwards() -> None:
    model = mosa()
    x, loss_of = batch()
    draw(model, 0, 2, 0, 2)
    stacked = two_pass(model, x, loss_of, add=0.5, reg=2.0)
    first, second = logits_of(model, x), logits_of(model, x)
    divergence = (kl(second, first) + kl(first, second)) / 2
    loss = loss_of(first) + 0.5 * loss_of(second) + 2.0 * divergence
    torch.testing.assert_close(stacked.loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(stacked.logits, first, rtol=1e-12, atol=1e-14)
    learns = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(stacked.loss, learns), torch.autograd.grad(loss, learns), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("objective", [two_pass, one_backward])
def test_passes_differ_and_the_setting_is_put_back(objective: Objective) -> None:
    model = mosa(draw="sample", blocks=3)
    x, loss_of = batch(12)
    result = objective(model, x, loss_of)
    assert result.parts["divergence"] > 1e-4
    assert result.logits.shape == (12, 3)
    assert all(router.context.passes == 1 for router in random_routers(model).values())


def test_detached_targets_give_half_the_gradient_to_first_order() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    step = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    gaps = []
    for size in (1e-2, 1e-3):
        leaf = base.clone().requires_grad_()
        two = (base + size * step).requires_grad_()
        grads = {
            detach: torch.autograd.grad(
                (kl(two, leaf, detach=detach) + kl(leaf, two, detach=detach)) / 2, (leaf, two)
            )
            for detach in (True, False)
        }
        # exactly the difference of the probabilities, halved and averaged over the batch
        expected = (leaf.softmax(-1) - two.softmax(-1)) / 2 / 5
        torch.testing.assert_close(grads[True][0], expected, rtol=1e-10, atol=1e-15)
        torch.testing.assert_close(grads[True][1], -expected, rtol=1e-10, atol=1e-15)
        gap = (grads[False][0] - 2 * expected).norm() / expected.norm()
        gaps.append(gap.item())
    assert gaps[0] < 0.1 and gaps[1] < gaps[0] / 5


@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 2**20))
def test_kl_is_a_divergence(rows: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, q = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64).unbind()
    assert kl(p, q) >= 0
    assert kl(p, p).abs() < 1e-12
    by_hand = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(kl(p, q), by_hand)


@pytest.mark.parametrize("scale", [0.7, "channel"])
def test_local_variance_is_half_the_expected_distance_of_two_passes(scale: float | str) -> None:
    model = mosa(scale=scale)
    x, loss_of = batch()
    draw(model, 1)
    result = local_variance(model, x, loss_of, weight=3.0)
    outputs = []
    cell = model.blocks[0].cell  # pyright: ignore
    hook = cell.register_forward_hook(lambda _m, _x, y: outputs.append(y.detach()))
    for expert in range(EXPERTS):
        draw(model, expert)
        logits_of(model, x)
    hook.remove()
    pairs = itertools.product(outputs, repeat=2)
    distance = torch.stack([(a - b).square().sum(-1).mean() for a, b in pairs]).mean()
    torch.testing.assert_close(result.parts["variance"], distance / 2, rtol=1e-10, atol=0)
    torch.testing.assert_close(result.loss, result.parts["task"] + 1.5 * distance)
    assert gradient(model.train(), partial(_undrawn, local_variance)).abs().max() > 0
    assert not any(m._forward_pre_hooks for m in model.modules())


def _undrawn(objective: Objective, model: nn.Module, x: Tensor, loss_of: Callable) -> object:
    draw(model, 0)
    return objective(model, x, loss_of)


def test_local_variance_needs_a_split_up_projection() -> None:
    model = host(method=Bottleneck(4, norm="none")).train()
    x, y = pictures(4).tensors
    with refused(ConfigError, what="objective 'local_variance'"):
        local_variance(model, x, partial(_cross_entropy, y))


def test_r_drop_works_on_any_model_with_dropout() -> None:
    model = host(method=Bottleneck(4, norm="none"), dropout=0.5).double().train()
    x, loss_of = batch()
    torch.manual_seed(0)
    result = two_pass(model, x, loss_of, add=1.0)
    assert result.parts["divergence"] > 0
    model.eval()
    still = two_pass(model, x, loss_of, add=1.0)
    assert still.parts["divergence"].abs() < 1e-12
    torch.testing.assert_close(still.loss, 2 * plain(model, x, loss_of).loss)


def test_deep_alignment_is_the_distance_of_the_first_half_of_the_blocks() -> None:
    model = host(
        method=Mosa(over=Bottleneck(4, norm="none", scale=1.0), experts=EXPERTS), blocks=4
    ).double()
    stir(model)
    model.train()
    x, loss_of = batch()
    outputs = []
    hooks = [b.register_forward_hook(lambda _m, _x, y: outputs.append(y)) for b in model.blocks]
    result = two_pass(model, x, loss_of, deep=0.25)
    for hook in hooks:
        hook.remove()
    by_hand = sum((h[:6] - h[6:]).square().mean() for h in outputs[:2])
    torch.testing.assert_close(result.parts["deep"], by_hand, check_dtype=False, rtol=1e-5, atol=0)
    without = result.parts["task"] + result.parts["divergence"]
    torch.testing.assert_close(
        result.loss, without + 0.25 * result.parts["deep"], rtol=1e-6, atol=0
    )
    assert not any(m._forward_hooks for m in model.modules())
    assert blocks_of(model) == list(model.blocks)


def test_blocks_of_a_model_without_blocks_is_an_error() -> None:
    with refused(ConfigError, what="blocks of Sequential"):
        blocks_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def _groups(classes: int, tasks: int, seed: int) -> list[list[int]]:
    """Classes dealt to tasks in no order; every task has one."""
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).tolist()
    return [order[i::tasks] for i in range(tasks)]


def _masked_naive(logits: Tensor, labels: Tensor, groups: list[list[int]]) -> Tensor:
    """Row by row: everything outside the classes of the label's own task is -inf."""
    rows = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        (own_group,) = [g for g in groups if label in g]
        keep = torch.tensor([c in own_group for c in range(len(row))])
        rows.append(torch.where(keep, row, -torch.inf))
    return torch.stack(rows)


JOINT = (st.integers(1, 6), st.integers(2, 9), st.integers(1, 4), st.integers(0, 2**20))


@given(*JOINT)
def test_task_heads_are_minus_infinity_elsewhere(
    rows: int, classes: int, tasks: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (rows,), generator=generator)
    groups = _groups(classes, min(tasks, classes), seed)
    model = nn.Linear(5, classes, dtype=torch.float64)
    result = task_heads(model, x, TargetLoss(F.cross_entropy, y), groups=groups)
    naive = F.cross_entropy(_masked_naive(model(x), y, groups), y)
    torch.testing.assert_close(result.loss, naive, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(own_task(model(x), y, groups), _masked_naive(model(x), y, groups))
    torch.testing.assert_close(result.logits, model(x))
    for a, b in zip(
        torch.autograd.grad(result.loss, list(model.parameters())),
        torch.autograd.grad(naive, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


@given(*JOINT)
def test_a_known_task_never_costs_accuracy(rows: int, classes: int, tasks: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    groups = _groups(classes, min(tasks, classes), seed)
    accuracy = task_accuracy(logits, labels, groups)
    naive = _masked_naive(logits, labels, groups).argmax(1) == labels
    assert accuracy == naive.double().mean()
    assert accuracy >= (logits.argmax(1) == labels).double().mean()
    assert task_accuracy(logits, labels, [[c] for c in range(classes)]) == 1


def test_task_heads_around_another_objective_and_smoothing() -> None:
    model = mosa()
    x, y = batch()[0], pictures(6).tensors[1]
    groups = [[2, 0], [1]]
    smooth = partial(F.cross_entropy, label_smoothing=0.3)
    draw(model, 0, 1, 0, 1)
    result = task_heads(
        model, x, TargetLoss(smooth, y), groups=groups, over=partial(two_pass, reg=2.0)
    )
    plain_result = two_pass(model, x, TargetLoss(smooth, y), reg=2.0)
    torch.testing.assert_close(result.parts["divergence"], plain_result.parts["divergence"])
    by_hand = torch.zeros((), dtype=torch.float64)
    for row, label in zip(result.logits, y.tolist(), strict=True):
        (group,) = [g for g in groups if label in g]
        by_hand = by_hand + smooth(row[group][None], torch.tensor([group.index(label)])) / 6
    torch.testing.assert_close(result.parts["task"], by_hand)
    assert result.loss.isfinite() and result.parts["task"] < plain_result.parts["task"]


def test_task_heads_through_fit() -> None:
    heads = partial(task_heads, groups=[[0, 2], [1]])
    run = fit(host(method=Bottleneck(4, norm="none")), pictures(12), epochs=1, objective=heads)
    assert run.record["objective"] == {"name": "task_heads", "groups": [[0, 2], [1]]}


@pytest.mark.parametrize(
    ("groups", "loss_of", "got"),
    [
        ([[0, 1]], TargetLoss(F.cross_entropy, torch.tensor([0, 1])), "1 groups with 2 classes"),
        (
            [[0, 1], [1, 2]],
            TargetLoss(F.cross_entropy, torch.tensor([0, 1])),
            "2 groups with 4 classes",
        ),
        (
            [[0, 1], [2]],
            TargetLoss(F.cross_entropy, torch.eye(3)[:2]),
            "a loss without one label for each image",
        ),
        ([[0, 1], [2]], torch.sum, "a loss without one label for each image"),
    ],
)
def test_task_heads_that_cannot_be(
    groups: list[list[int]], loss_of: Callable[[Tensor], Tensor], got: str
) -> None:
    with refused(ConfigError, got=got):
        task_heads(nn.Linear(4, 3), torch.zeros(2, 4), loss_of, groups=groups)


@pytest.mark.parametrize("objective", [two_pass, one_backward])
def test_padding_counts_in_no_divergence(objective: Objective) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9)).train()
    calls = itertools.count()

    def noisy(_: nn.Module, __: object, logits: Tensor) -> Tensor:
        half = logits.shape[0] // 2 or 1
        shift = torch.linspace(0, 1, 9).expand_as(logits) * next(calls)
        shift = shift.clone()
        shift[half:] += torch.linspace(1, 0, 9)
        return logits + shift

    model.register_forward_hook(noisy)
    results = []
    for pad in (0, 20):
        x = torch.randint(9, (2, 5), generator=torch.Generator().manual_seed(1))
        y = x.clone()
        x, y = (F.pad(t, (0, pad), value=v) for t, v in ((x, 0), (y, -100)))
        calls = itertools.count()
        results.append(objective(model, x, Tokens().loss_of((x, y))))
    for name in ("task", "divergence"):
        torch.testing.assert_close(results[0].parts[name], results[1].parts[name])
    assert results[0].parts["divergence"] > 0
