"""Scores are the paper's formula; permuted columns permute them where order plays no part."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ConfigError, DataError
from intarsia.scores import (
    Statistics,
    gradient,
    inverse_factor,
    magnitude,
    obs,
    taylor,
    wanda,
)

from ..refusals import refused


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W, X = drawn(4, 5), drawn(30, 5, seed=1) * torch.arange(1, 6)
ORDER = torch.tensor([3, 0, 4, 1, 2])


def seen(x: Tensor = X) -> Statistics:
    return Statistics.of(x, needs={"square", "hessian"})


def test_each_score_is_its_formula() -> None:
    assert torch.equal(magnitude(W), W.abs())
    norms = torch.stack([x.norm() for x in X.T])
    ratio = wanda(W, seen()) / (W.abs() * norms)
    assert_close(ratio, ratio[0, 0].expand_as(ratio))  # one factor for all
    assert torch.equal(gradient(W, -W), W.abs())
    assert_close(taylor(W, W), W.square())


def test_obs_is_the_error_of_dropping_a_weight_alone() -> None:
    h = X.T @ X / len(X)
    h = h + 0.01 * h.diagonal().mean() * torch.eye(5, dtype=h.dtype)
    found = obs(W, seen())
    for j in range(5):
        # the columns behind j are solved for, those before stay
        behind = h[j:, j:]
        shift = torch.linalg.inv(behind)[:, 0] / torch.linalg.inv(behind)[0, 0]
        for i in range(4):
            change = -W[i, j] * shift
            assert_close(found[i, j], change @ behind @ change)


def test_permuted_columns_permute_wanda_s_scores() -> None:
    assert_close(wanda(W[:, ORDER], seen(X[:, ORDER])), wanda(W, seen())[:, ORDER])


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    h = X.T @ X
    factor = inverse_factor(h, 0.1)
    damped = h + 0.1 * h.diagonal().mean() * torch.eye(5, dtype=h.dtype)
    assert_close(factor.T @ factor, torch.linalg.inv(damped))
    assert torch.equal(factor, factor.triu())


def test_an_input_that_is_always_0_does_not_stop_it() -> None:
    x = X.clone()
    x[:, 2] = 0
    assert torch.isfinite(obs(W, seen(x))).all()


def test_singular_moments_are_damped_more_and_what_is_not_finite_is_refused() -> None:
    h = torch.eye(3, dtype=torch.float64)
    h[0, 1] = h[1, 0] = 1.05  # positive definite with a damping of 0.1, not of 0.01
    assert_close(inverse_factor(h, 0.01), inverse_factor(h, 0.1))
    h[0, 1] = h[1, 0] = 3
    with refused(
        DataError,
        what="moments of inputs",
        got="no positive definite matrix after dampings up to 1.0",
    ):
        inverse_factor(h, 0.01)
    h[0, 1] = torch.inf
    with refused(DataError, what="moments of inputs", got="1 columns not finite"):
        inverse_factor(h)
    with refused(ConfigError, what="statistics", got="no 'square'"):
        wanda(W, Statistics.of(X, needs={"mean"}))
