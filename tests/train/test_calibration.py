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
from intarsia.train.scores import (
    Metrics,
    best_temperature,
    calibration_error,
    comparing_temperature,
    tempered_loss,
    wrong_and_loss,
)


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
def test_at_the_temperature_likelihood_and_prior_have_no_slope(seed: int, scale: float) -> None:
    logits, labels = drawn(400, 3, seed, scale)
    temperature = best_temperature(logits, labels)
    assert temperature is not None
    log_t = torch.tensor(math.log(temperature), dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(logits / log_t.exp(), labels, reduction="sum") + (log_t / 0.5) ** 2 / 2
    (slope,) = torch.autograd.grad(loss, log_t)
    assert abs(float(slope)) < 1e-2 * len(labels)


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_a_scale_is_undone_by_a_large_part(scale: float) -> None:
    temperatures = [best_temperature(*drawn(2_000, 4, seed, scale)) for seed in range(5)]
    assert all(t is not None and abs(t / scale - 1) < 0.2 for t in temperatures)
    assert best_temperature(*drawn(20_000, 4, 0, scale)) == pytest.approx(scale, rel=0.05)


def test_a_part_without_a_mistake_carries_no_temperature() -> None:
    """The likelihood alone goes to its bound there: a loss of .193 became .306 on the test part."""
    for margin in (0.5, 3.0, 20.0):
        logits = margin * torch.eye(3, dtype=torch.float64).repeat(50, 1)
        labels = torch.arange(3).repeat(50)
        assert best_temperature(logits, labels) is None
        val = Metrics.of(logits, labels)
        test = Metrics.of(*drawn(100, 3, 0))
        assert test.tempered(val) is test and "tempered_loss" not in test.scores()


def test_a_small_part_carries_none_and_never_runs_away() -> None:
    for seed in range(40):
        assert best_temperature(*drawn(6, 4, seed)) is None
        temperature = best_temperature(*drawn(60, 4, seed, 2.0))
        assert temperature is None or 1.0 < temperature < 3.5
        logits = 8.0 * torch.eye(3, dtype=torch.float64).repeat(50, 1)
        labels = torch.arange(3).repeat(50)
        labels[seed] = (labels[seed] + 1) % 3  # one mistake among 150
        temperature = best_temperature(logits, labels)
        assert temperature is None or 0.5 < temperature < 2.5


def test_a_logit_that_is_no_number_has_none() -> None:
    right = torch.eye(3, dtype=torch.float64)
    assert best_temperature(right * math.inf, torch.arange(3)) is None
    assert comparing_temperature(right * math.inf, torch.arange(3)) == 1.0


def test_scale_decides_no_comparison_however_few_samples_there_are() -> None:
    """Answers at chance leave the temperature unsure; their scale still counts for little."""
    labels = torch.arange(16).repeat(6)
    logits = torch.randn(96, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert best_temperature(logits / 2, labels) is None
    assert F.cross_entropy(4 * logits, labels) > 2 * F.cross_entropy(logits / 2, labels)
    losses = [tempered_loss(scale * logits, labels) for scale in (0.5, 1.0, 4.0)]
    assert max(losses) < 1.05 * min(losses)
    without_mistake = torch.eye(4, dtype=torch.float64).repeat(9, 1)
    assert comparing_temperature(without_mistake, torch.arange(4).repeat(9)) < 1.0


def test_the_temperature_is_that_of_val_and_ranks_stay() -> None:
    val, test = (Metrics.of(*drawn(500, 4, seed, 3.0)) for seed in (0, 1))
    tempered = test.tempered(val)
    t = best_temperature(val.logits, val.labels)
    assert t is not None and tempered.extra["temperature"] == t
    want = F.cross_entropy(test.logits / t, test.labels)
    assert tempered.extra["tempered_loss"] == pytest.approx(float(want)) and float(want) < test.loss
    assert tempered.accuracy == test.accuracy and tempered.loss == test.loss


def test_more_right_answers_come_before_a_smaller_loss() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    sure = 9 * torch.eye(3)[[1, 1, 2, 0]] - 9 * torch.eye(3)[[0, 2, 0, 1]]  # one wrong, and sure
    unsure = 0.01 * torch.eye(3)[[1, 2, 2, 0]]  # two wrong, hardly more than a guess
    assert wrong_and_loss(sure, labels) < wrong_and_loss(unsure, labels)
    assert tempered_loss(sure, labels) > tempered_loss(unsure, labels)
    several = torch.eye(3)[labels]  # several labels may apply: the loss alone
    assert wrong_and_loss(sure, several)[0] == wrong_and_loss(unsure, several)[0] == 0


@pytest.mark.parametrize("val", [True, False])
def test_a_run_knows_its_tempered_loss_where_it_has_a_val_part(val: bool) -> None:
    sets: Any = {"test": pictures(20, 2)} | ({"val": pictures(3_000, 1)} if val else {})
    run = fit(host(), pictures(20), **sets, epochs=5, trackers=())
    assert ("tempered_loss" in run.record["results"]["test"]) == val
    assert 0 <= run.record["results"]["test"]["ece"] <= 1
