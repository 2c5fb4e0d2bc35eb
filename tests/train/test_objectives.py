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
from intarsia.methods import Mosa
from intarsia.routers import random_routers
from intarsia.train.objectives import (
    Objective,
    blocks_of,
    kl,
    local_variance,
    logits_of,
    one_backward,
    plain,
    two_pass,
)

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
    found = torch.autograd.grad(objective(model, x, loss_of).loss, learns, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for p, g in zip(learns, found, strict=True)
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
    found = objective(model, x, loss_of)
    assert found.parts["divergence"] > 1e-4
    assert found.logits.shape == (12, 3)
    assert all(router.passes == 1 for router in random_routers(model).values())


def test_detached_targets_give_half_the_gradient_to_first_order() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    step = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    gaps = []
    for size in (1e-2, 1e-3):
        one = base.clone().requires_grad_()
        two = (base + size * step).requires_grad_()
        grads = {
            detach: torch.autograd.grad(
                (kl(two, one, detach=detach) + kl(one, two, detach=detach)) / 2, (one, two)
            )
            for detach in (True, False)
        }
        # exactly the difference of the probabilities, halved and averaged over the batch
        expected = (one.softmax(-1) - two.softmax(-1)) / 2 / 5
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
    found = local_variance(model, x, loss_of, weight=3.0)
    outputs = []
    cell = model.blocks[0].cell  # pyright: ignore
    hook = cell.register_forward_hook(lambda _m, _x, y: outputs.append(y.detach()))
    for expert in range(EXPERTS):
        draw(model, expert)
        logits_of(model, x)
    hook.remove()
    pairs = itertools.product(outputs, repeat=2)
    distance = torch.stack([(a - b).square().sum(-1).mean() for a, b in pairs]).mean()
    torch.testing.assert_close(found.parts["variance"], distance / 2, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.loss, found.parts["task"] + 1.5 * distance)
    assert gradient(model.train(), partial(_undrawn, local_variance)).abs().max() > 0
    assert not any(m._forward_pre_hooks for m in model.modules())


def _undrawn(objective: Objective, model: nn.Module, x: Tensor, loss_of: Callable) -> object:
    draw(model, 0)
    return objective(model, x, loss_of)


def test_local_variance_needs_a_split_up_projection() -> None:
    model = host(method=Bottleneck(4, norm="none")).train()
    x, y = pictures(4).tensors
    with pytest.raises(ConfigError, match="no split up-projection.*want MoSA"):
        local_variance(model, x, partial(_cross_entropy, y))


def test_r_drop_works_on_any_model_with_dropout() -> None:
    model = host(method=Bottleneck(4, norm="none"), dropout=0.5).double().train()
    x, loss_of = batch()
    torch.manual_seed(0)
    found = two_pass(model, x, loss_of, add=1.0)
    assert found.parts["divergence"] > 0
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
    found = two_pass(model, x, loss_of, deep=0.25)
    for hook in hooks:
        hook.remove()
    by_hand = sum((h[:6] - h[6:]).square().mean() for h in outputs[:2])
    torch.testing.assert_close(found.parts["deep"], by_hand, check_dtype=False, rtol=1e-5, atol=0)
    without = found.parts["task"] + found.parts["divergence"]
    torch.testing.assert_close(found.loss, without + 0.25 * found.parts["deep"], rtol=1e-6, atol=0)
    assert not any(m._forward_hooks for m in model.modules())
    assert blocks_of(model) == list(model.blocks)


def test_blocks_of_a_model_without_blocks_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no repeated block"):
        blocks_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
