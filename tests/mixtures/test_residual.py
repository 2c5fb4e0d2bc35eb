"""Momentum along the depth: its limits, its stability, Adam's first step, and who starts it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from intarsia.core.errors import ConfigError, TargetError
from intarsia.gating import join, start
from intarsia.mixtures import AdamOnce, HeavyBall, Plain, Residual, Robust, Update, wrap_residuals
from intarsia.mixtures.mixture import Mixture
from intarsia.routers import TopK

from ..refusals import refused

WIDTH = 6
SOME = (HeavyBall(0.6, 0.8), AdamOnce(), AdamOnce.published(), Robust())


class Pull(nn.Module):
    """f(x) = -curvature x."""

    def __init__(self, curvature: float) -> None:
        super().__init__()
        self.curvature = nn.Parameter(torch.tensor(curvature, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return -self.curvature * x


def mlp(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh())


def stack(update: Update, blocks: list[nn.Module]) -> nn.Sequential:
    model = nn.Sequential(*(Residual(block, update) for block in blocks))
    join(model)
    return model


def through(model: nn.Sequential, x: Tensor) -> Tensor:
    start(model)
    return model(x)


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_no_momentum_is_the_residual_block_bit_for_bit() -> None:
    x, plain = inputs(2, 3), inputs(2, 3)
    blocks = [mlp(i) for i in range(4)]
    for block in blocks:
        plain = plain + block(plain)
    for update in (Plain(), HeavyBall(mu=0.0, gamma=1.0)):
        assert torch.equal(through(stack(update, blocks), x), plain)
    want = x + blocks[0](x)  # nor is there any at the first block
    assert torch.equal(through(stack(HeavyBall(0.9), blocks[:1]), x), want)


def test_momentum_is_that_of_the_written_out_sum_and_starts_anew() -> None:
    blocks, x = [mlp(i) for i in range(4)], inputs(5)
    model = stack(HeavyBall(0.6, 0.8), blocks)
    h, outputs = x, []
    for layer, block in enumerate(blocks):
        outputs.append(block(h))
        h = h + sum(0.6 ** (layer - i) * 0.8 * f for i, f in enumerate(outputs))
    for rows in (x, x, x[:2]):  # nothing stale, not even of other rows
        assert_close(through(model, rows), h[: len(rows)])


@given(st.floats(-1.5, 1.5), st.floats(-0.5, 5.0))
def test_it_is_stable_exactly_where_the_argument_says(mu: float, pull: float) -> None:
    inside = abs(mu) < 1 and 0 < pull < 2 * (1 + mu)
    edges = (abs(mu) - 1, pull, pull - 2 * (1 + mu))
    if min(abs(e) for e in edges) < 0.02:
        return
    step = torch.tensor([[1 - pull, mu], [-pull, mu]], dtype=torch.float64)  # on (x, m)
    assert torch.linalg.det(step).item() == pytest.approx(mu, abs=1e-9)
    assert step.trace().item() == pytest.approx(1 - pull + mu)
    radius = torch.linalg.eigvals(step).abs().max().item()
    assert (radius < 1) == inside
    if abs(mu) < 1:
        model = stack(HeavyBall(mu, 1.0), [Pull(pull)] * 3)
        x = torch.ones(1, 1, dtype=torch.float64)
        state = torch.tensor([1.0, 0.0], dtype=torch.float64)
        for _ in range(3):
            state = step @ state
        assert through(model, x).item() == pytest.approx(state[0].item())


def test_momentum_stands_a_curvature_at_which_the_plain_block_diverges() -> None:
    x, blocks = torch.ones(1, 1, dtype=torch.float64), [Pull(2.5)] * 60
    plain, momentum = (through(stack(u, blocks), x).abs().item() for u in (Plain(), HeavyBall(0.6)))
    assert plain > 1e9 and momentum < 1e-3


@given(st.floats(1.2, 50.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.1, 10.0))
def test_robust_shrinks_every_curvature_of_its_range_at_its_rate(
    k: float, share: float, curvature: float, largest: float
) -> None:
    low, high = 1 - k**-0.5, 1 - 1 / k
    p = min(high, low + share * (high - low))
    gamma, mu, alpha = Robust(k, p, largest).constants
    pull = gamma * largest * (1 / k + curvature * (1 - 1 / k))
    step = torch.tensor([[1 - pull, mu - pull * alpha], [-pull, mu - pull * alpha]])
    assert torch.linalg.eigvals(step.double()).abs().max().item() <= p + 1e-3


def test_the_constants_of_robust_momentum_by_hand() -> None:
    """k = 4 and p = .6 of L = 2: (1 - p)^2 (1 + p) = .256, gamma = 4 x .256 / 2 = .512,

    mu = 4 x .216 / 3 = .288 and alpha = .216 / (3 x .256) = .28125.
    """
    assert Robust(4.0, 0.6, 2.0).constants == pytest.approx((0.512, 0.288, 0.28125))


def test_robust_looks_ahead() -> None:
    blocks, x = [mlp(0), mlp(1)], inputs(5)
    gamma, mu, alpha = Robust().constants
    first = gamma * blocks[0](x)
    h = x + first
    want = h + mu * first + gamma * blocks[1](h + alpha * first)
    assert_close(through(stack(Robust(), blocks), x), want)


def change(update: AdamOnce, f: Tensor, x: Tensor) -> Tensor:
    step, m = update.step(lambda _: f, x, None)
    assert m is not None
    assert_close(m, update.gamma * f)  # what the second block carries on is heavy-ball's
    return step


def test_adam_as_published_steps_by_sign_and_its_block_learns_nothing() -> None:
    x, f = inputs(4).double(), inputs(4, seed=1).double().requires_grad_()
    update = AdamOnce.published()
    want = 0.1 * f / (0.001 * f.square() + 1e-8).sqrt() - x
    assert_close(change(update, f, x), want)
    big = f.detach().abs() > 0.1
    assert_close(want[big] + x[big], math.sqrt(10) * f[big].sign(), rtol=1e-3, atol=1e-3)
    (gradient,) = torch.autograd.grad(change(update, f, x).sum(), f)
    assert_close(gradient, 0.1 * 1e-8 / (0.001 * f.square() + 1e-8).pow(1.5))
    assert gradient[big].abs().max().item() < 0.05
    # the block's input is gone: kappa = 1
    assert_close(x + change(update, f, x), x * 0 + (want + x))


def test_adam_mended_is_as_long_as_it_should_be_and_its_block_learns() -> None:
    x, f = inputs(200).double(), inputs(200, seed=1).double().requires_grad_()
    update = AdamOnce(gamma1=0.3)
    step = change(update, f, x)
    length = step.square().mean(-1).sqrt()
    assert_close(length, torch.full_like(length, 0.3), rtol=0.01, atol=0)
    assert_close(change(update, 100 * f, x), step, rtol=1e-4, atol=1e-6)
    kicks = inputs(200, seed=2).double()
    ours, theirs = (
        torch.autograd.grad((change(u, f, x) * kicks).sum(), f)[0].abs().median().item()
        for u in (update, AdamOnce.published())
    )
    assert ours > 0.1 and ours > 100 * theirs
    # a token's step depends on no other token
    assert_close(change(update, f[:1], x[:1]), step[:1])


def test_adam_is_heavy_ball_from_the_second_block_on() -> None:
    blocks, x = [mlp(i) for i in range(3)], inputs(5)
    update = AdamOnce(mu=0.6, gamma=0.8)
    h = x + change(update, blocks[0](x), x)
    m = 0.8 * blocks[0](x)
    for block in blocks[1:]:
        m = 0.6 * m + 0.8 * block(h)
        h = h + m
    assert_close(through(stack(update, blocks), x), h)


@pytest.mark.parametrize("update", SOME, ids=lambda u: type(u).__name__)
def test_checkpointing_changes_no_gradient(update: Update) -> None:
    gradients = []
    for recompute in (False, True):
        model = stack(update, [mlp(i) for i in range(3)])
        start(model)
        x = h = inputs(4).requires_grad_()
        for block in model:
            h = checkpoint(block, h, use_reentrant=False) if recompute else block(h)
        assert isinstance(h, Tensor)
        h.square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    assert_close(gradients[1], gradients[0])


def test_around_mixtures_of_experts() -> None:
    draw = torch.Generator().manual_seed(0)
    blocks: list[nn.Module] = [
        Mixture([mlp(4 * i + e) for e in range(4)], TopK(4, 2).build(WIDTH, generator=draw))
        for i in range(3)
    ]
    model, x = stack(HeavyBall(0.7), blocks), inputs(2, 5)
    y = through(model, x)
    assert y.shape == x.shape and not torch.equal(y, through(stack(Plain(), blocks), x))
    y.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_host_that_adds_x_itself_is_wrapped_and_started() -> None:
    vit: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=12, num_heads=2, num_classes=3
    ).eval()  # fmt: skip
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    paths = [f"blocks.{i}.mlp" for i in range(3)]
    with torch.no_grad():
        want = vit(images)
        wrap_residuals(vit, HeavyBall(0.0, 1.0), paths)
        assert torch.equal(vit(images), want)
        for path in paths:
            vit.get_submodule(path).update = HeavyBall(0.7)
        moved = vit(images)
        assert not torch.equal(moved, want) and torch.equal(vit(images), moved)
        assert torch.equal(vit(images[:1]), moved[:1]) or torch.allclose(
            vit(images[:1]), moved[:1], atol=1e-5
        )
    with refused(TargetError, what="path 'blocks.9.mlp'"):
        wrap_residuals(vit, HeavyBall(), ["blocks.9.mlp"])
    two = nn.ModuleDict({"both": nn.Bilinear(4, 4, 4)})
    with refused(TargetError, what="path 'both'"):
        wrap_residuals(two, HeavyBall(), ["both"])


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: HeavyBall(1.0), "mu"),
        (lambda: AdamOnce(beta2=1.0), "beta2"),
        (lambda: AdamOnce(start="batch"), "start"),
        (lambda: Robust(k=1.0), "k, L"),
        (lambda: Robust(k=4.0, p=0.9), "p"),
        (lambda: Residual(nn.Identity(), Robust(), added=True), "added"),
        (lambda: Residual(nn.Identity(), AdamOnce.published(), added=True), "added"),
    ],
)
def test_bad_settings_are_refused(make: Any, field: str) -> None:
    with refused(ConfigError, what=field):
        make()
