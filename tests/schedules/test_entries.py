"""Chosen entries move as under the full optimiser, all others keep their bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.testing import assert_close

from intarsia.schedules import Entries, pull
from intarsia.schedules.phases import Make


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def adamw(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    learns = [p for p in model.parameters() if p.requires_grad]
    return AdamW(learns, lr=lr, weight_decay=weight_decay)


def momentum(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return SGD(model.parameters(), lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True)


def steps(model: nn.Module, make: Make, count: int = 5, micro: int = 1) -> Optimizer:
    optimizer = make(model, 0.05, 0.3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for _ in range(micro):
            x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
            (model(x).square().sum() / micro).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def every(model: nn.Module) -> dict[nn.Parameter, Tensor]:
    return {p: torch.arange(p.numel()) for p in model.parameters()}


@pytest.mark.parametrize("make", [adamw, momentum])
@pytest.mark.parametrize("micro", [1, 3])
def test_all_entries_are_the_full_training(make: Make, micro: int) -> None:
    full, ours = net(), net()
    steps(full, make, micro=micro)
    with Entries(every(ours)).training() as entries:
        steps(ours, entries.optimizer(make), micro=micro)
    for a, b in zip(full.parameters(), ours.parameters(), strict=True):
        assert_close(b, a, rtol=0, atol=1e-14)


@pytest.mark.parametrize("make", [adamw, momentum])
def test_the_others_keep_their_bits_under_weight_decay(make: Make) -> None:
    model = net()
    before = {p: p.detach().clone() for p in model.parameters()}
    index = {p: torch.arange(1, p.numel(), 3) for p in model.parameters()}
    with Entries(index).training() as entries:
        optimizer = steps(model, entries.optimizer(make))
    for p, old in before.items():
        moved = (p != old).flatten().nonzero().flatten()
        assert moved.tolist() == index[p].tolist()
    # moments are as short as the selection
    sizes = {s.numel() for state in optimizer.state.values() for s in state.values()
             if isinstance(s, Tensor) and s.dim()}  # fmt: skip
    assert sizes <= {len(i) for i in index.values()}


def test_it_is_the_masked_gradient_of_the_naive_twin() -> None:
    index = {0: torch.tensor([0, 3, 34]), 2: torch.tensor([5, 6])}
    ours, naive = net(), net()

    def masked(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
        """Gradients times the mask, no decay (which would move all), as the released code."""
        optimizer = adamw(model, lr, 0.0)

        def mask(*_: object) -> None:
            for i, p in enumerate(model.parameters()):
                assert p.grad is not None
                keep = torch.zeros(p.numel(), dtype=torch.bool)
                keep[index.get(i, torch.empty(0, dtype=torch.int64))] = True
                p.grad.mul_(keep.view_as(p))

        optimizer.register_step_pre_hook(mask)
        return optimizer

    steps(naive, masked)
    parameters = list(ours.parameters())
    for p in parameters:
        p.requires_grad_(False)
    for i in index:
        parameters[i].requires_grad_(True)
    with Entries({parameters[i]: places for i, places in index.items()}).training() as entries:
        steps(ours, lambda m, lr, _: entries.optimizer(adamw)(m, lr, 0.0))
    for a, b in zip(naive.parameters(), ours.parameters(), strict=True):
        assert_close(b, a, rtol=0, atol=1e-14)


def test_gradients_are_let_go_at_once_and_hooks_leave() -> None:
    model = net()
    with Entries(every(model)).training() as entries:
        model(torch.ones(1, 5, dtype=torch.float64)).sum().backward()
        assert all(p.grad is None for p in model.parameters())
        assert all(v.grad is not None for v in entries.vectors.values())
    model(torch.ones(1, 5, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_weights_that_were_set_meanwhile_are_what_is_moved() -> None:
    # as a checkpoint does that is read after the optimiser was made
    model = net()
    with Entries(every(model)).training() as entries:
        optimizer = entries.optimizer(lambda m, lr, wd: SGD(m.parameters(), lr=0.0))(
            model, 0.0, 0.0
        )
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(2.0)
        model(torch.ones(1, 5, dtype=torch.float64)).sum().backward()
        optimizer.step()
    assert all((p == 2).all() for p in model.parameters())


def test_a_transposed_weight_keeps_its_values() -> None:
    model = nn.Linear(3, 4, bias=False)
    model.weight.data = torch.randn(3, 4).T
    before = model.weight.detach().clone()
    index = {model.weight: torch.tensor([1])}
    with Entries(index).training() as entries:
        optimizer = entries.optimizer(lambda m, lr, wd: SGD(m.parameters(), lr=1.0))(
            model, 1.0, 0.0
        )
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    moved = (model.weight != before).nonzero().tolist()
    assert moved == [[0, 1]]


@pytest.mark.parametrize("micro", [1, 3])
def test_the_pull_is_added_once_in_a_step(micro: int) -> None:
    model = nn.Linear(2, 2, bias=False).double()
    start = model.weight.detach() - torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    gradients: list[Tensor] = []

    def make(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
        return SGD(model.parameters(), lr=lr)

    optimizer = pull(make, {model.weight: start}, 8.0)(model, 1.0, 0.0)
    optimizer.register_step_pre_hook(lambda *_: gradients.append(model.weight.grad.clone()))  # pyright: ignore
    for _ in range(micro):
        (model(torch.zeros(1, 2, dtype=torch.float64)).sum()).backward()
    optimizer.step()
    # 8 / N sign(theta - start), N = 4
    assert_close(gradients[0], torch.tensor([[2.0, -2.0], [0.0, 2.0]], dtype=torch.float64))


def test_no_pull_changes_nothing() -> None:
    make: Callable[..., Optimizer] = adamw
    assert pull(make, {}, 0.0) is make
