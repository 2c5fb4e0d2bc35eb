"""Calibration error and one temperature: a naive twin, the first-order condition, the ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.optimize  # noqa: F401  # its import would count as the time of the first example
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny import host, pictures
from torch import Tensor

from intarsia.fitting import fit
from intarsia.train.scores import Metrics, best_temperature, calibration_error


def drawn(n: int, classes: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits, and labels from their softmax; the logits are then made too sure by the scale."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits * scale, labels


def by_hand(logits: Tensor, labels: Tensor, bins: int) -> float:
    total = 0.0
    sure = [float(row.softmax(0).max()) for row in logits]
    right = [int(row.argmax()) == int(y) for row, y in zip(logits, labels, strict=True)]
    for b in range(bins):
        inside = [i for i, c in enumerate(sure) if b / bins < c <= (b + 1) / bins]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            confidence = sum(sure[i] for i in inside) / len(inside)
            total += len(inside) / len(sure) * abs(accuracy - confidence)
    return total


@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 99), st.integers(1, 20))
def test_the_error_is_that_of_bins_counted_by_hand(n: int, c: int, seed: int, bins: int) -> None:
    logits, labels = drawn(n, c, seed)
    assert calibration_error(logits, labels, bins) == pytest.approx(by_hand(logits, labels, bins))


def test_the_ends_of_the_error() -> None:
    sure = torch.tensor([[99.0, 0], [99.0, 0]])
    assert calibration_error(sure, torch.tensor([0, 0])) == 0
    assert calibration_error(sure, torch.tensor([1, 1])) == 1
    assert calibration_error(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])) == 0
    assert math.isnan(calibration_error(sure * math.nan, torch.tensor([0, 0])))
    logits, labels = drawn(20_000, 4, 0)
    assert calibration_error(logits, labels) < 0.02 < calibration_error(logits * 3, labels)


@given(st.integers(0, 99), st.floats(0.2, 5))
def test_at_the_temperature_the_loss_has_no_slope(seed: int, scale: float) -> None:
    logits, labels = drawn(200, 3, seed, scale)
    t = torch.tensor(best_temperature(logits, labels), dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(logits / t, labels)
    (slope,) = torch.autograd.grad(loss, t)
    assert abs(float(slope * t.detach())) < 1e-3
    assert float(loss.detach()) <= float(F.cross_entropy(logits, labels))


def test_a_scale_is_undone() -> None:
    assert best_temperature(*drawn(20_000, 4, 0, 3.0)) == pytest.approx(3, rel=0.05)
    right = torch.eye(3, dtype=torch.float64)
    assert 0.01 <= best_temperature(right, torch.arange(3)) < 0.05  # no loss is left there
    assert math.isnan(best_temperature(right * math.inf, torch.arange(3)))


def test_the_temperature_is_that_of_val_and_ranks_stay() -> None:
    val, test = (Metrics.of(*drawn(500, 4, seed, 3.0)) for seed in (0, 1))
    found = test.tempered(val)
    t = best_temperature(val.logits, val.labels)
    assert found.extra["temperature"] == t
    want = F.cross_entropy(test.logits / t, test.labels)
    assert found.extra["tempered_loss"] == pytest.approx(float(want)) and float(want) < test.loss
    assert found.accuracy == test.accuracy and found.loss == test.loss


@pytest.mark.parametrize("val", [True, False])
def test_a_run_knows_its_tempered_loss_where_it_has_a_val_part(val: bool) -> None:
    sets: Any = {"test": pictures(20, 2)} | ({"val": pictures(20, 1)} if val else {})
    run = fit(host(), pictures(20), **sets, epochs=1, trackers=())
    assert ("tempered_loss" in run.record["results"]["test"]) == val
    assert 0 <= run.record["results"]["test"]["ece"] <= 1
