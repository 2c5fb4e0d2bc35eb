"""Smooth steps, and the entropy that settles a choice."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from intarsia.core import Routing
from intarsia.core.errors import ConfigError
from intarsia.gating.parts import gated, smooth_step, unsettled
from intarsia.routers import Comet

from ..refusals import refused


@given(st.floats(0.1, 20.0))
def test_the_step_is_smooth_and_exact_at_its_ends(gamma: float) -> None:
    u = torch.linspace(-gamma, gamma, 41, dtype=torch.float64, requires_grad=True)
    s = smooth_step(u, gamma)
    t = u.detach() / gamma
    cubic = -2 * t**3 + 1.5 * t + 0.5
    want = torch.where(t <= -0.5, 0.0, torch.where(t >= 0.5, 1.0, cubic))
    assert_close(s, want)
    assert bool((s[t <= -0.5] == 0).all() and (s[t >= 0.5] == 1).all())  # no rounding
    (slope,) = torch.autograd.grad(s.sum(), u)
    inside = t.abs() < 0.49
    assert bool((slope[inside] > 0).all())
    assert_close(slope[t.abs() > 0.5], torch.zeros_like(slope[t.abs() > 0.5]))


def test_unsettled_is_1_when_even_0_when_settled_whatever_e_is() -> None:
    for experts in (2, 5, 16):
        even = torch.full((3, 2, experts), 1 / experts, dtype=torch.float64)
        assert_close(unsettled(even).item(), 1.0, atol=1e-4, rtol=0)
        one = torch.zeros_like(even)
        one[..., 1] = 1
        assert abs(unsettled(one)) < 1e-4
    p = torch.tensor([[[0.0, 1.0]]], requires_grad=True)
    unsettled(p).backward()
    assert p.grad is not None and bool(torch.isfinite(p.grad).all())


def test_gates_of_0_are_no_pairs() -> None:
    routing = gated(torch.tensor([[0.5, 0.0], [0.0, 1.0]]), torch.float32)
    assert isinstance(routing, Routing)
    assert routing.token.tolist() == [0, 1] and routing.expert.tolist() == [0, 1]


def test_no_part_is_refused() -> None:
    with refused(ConfigError, what="active", got=0):
        Comet(active=0)
