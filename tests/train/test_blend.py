"""The blend of logits is the weighted mean of probabilities, computed one by one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intarsia.train.blend import blended


def naive(
    logits: list[list[list[float]]], weights: list[float], temps: list[float], several: bool
) -> list[list[float]]:
    """The mean of probabilities, without a tensor."""
    rows: list[list[float]] = []
    for i in range(len(logits[0])):
        mean = [0.0] * len(logits[0][i])
        for z, w, t in zip(logits, weights, temps, strict=True):
            powers = [math.exp(v / t) for v in z[i]]
            for c, power in enumerate(powers):
                mean[c] += w * (power / (1 + power) if several else power / sum(powers))
        rows.append(mean)
    return rows


@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 5), st.booleans(), st.integers(0, 99))
def test_blended_is_the_mean_of_probabilities(
    members: int, n: int, classes: int, several: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = [4 * torch.randn(n, classes, generator=draw) for _ in range(members)]
    parts = (0.1 + torch.rand(members, generator=draw)).double()
    weights = (parts / parts.sum()).tolist()
    temperatures = (0.3 + 2 * torch.rand(members, generator=draw)).tolist()
    result = blended(logits, weights, temperatures, several)
    got = result.sigmoid() if several else result.exp()
    want = naive([z.tolist() for z in logits], weights, temperatures, several)
    torch.testing.assert_close(got, torch.tensor(want), atol=1e-5, rtol=1e-4)
    if not several:
        torch.testing.assert_close(result.softmax(1), got)


@pytest.mark.parametrize("several", [False, True])
def test_large_logits_stay_finite(several: bool) -> None:
    sure = torch.tensor([[500.0, -500.0], [-500.0, 500.0]])
    assert blended([sure, sure], [0.5, 0.5], [1.0, 1.0], several).isfinite().all()


def test_one_member_of_temperature_one_is_itself() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blended([logits], [1.0], [1.0]), logits.log_softmax(1))
    torch.testing.assert_close(blended([logits], [1.0], [1.0], True), logits)
