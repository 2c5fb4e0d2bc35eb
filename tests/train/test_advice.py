"""What a run that went wrong says of itself, with what to do."""

from __future__ import annotations

from typing import Any

import torch

from intarsia.train.advice import advice
from intarsia.train.scores import Metrics

RECORD: dict[str, Any] = {"training": {"lr": 1e-3}}


def curve(*losses: float) -> list[dict[str, Any]]:
    return [{"split": "train", "epoch": i + 1, "loss": loss} for i, loss in enumerate(losses)]


def scores(guesses: list[int], labels: list[int]) -> Metrics:
    logits = torch.eye(max(*guesses, *labels) + 1)[guesses]
    return Metrics.of(logits, torch.tensor(labels))


def test_a_good_run_says_nothing() -> None:
    assert advice(RECORD, curve(1.0, 0.5), scores([0, 1] * 50, [0, 1] * 50)) == []


def test_a_loss_that_does_not_fall_is_said_with_a_lower_rate() -> None:
    (line,) = advice(RECORD, curve(1.0, 1.2), None)
    assert "did not fall" in line and "--lr 0.0003" in line
    assert advice(RECORD, curve(1.0), None) == []  # one epoch shows no trend


def test_the_commonest_class_alone_is_said_with_its_share() -> None:
    (line,) = advice(RECORD, curve(1.0, 0.5), scores([0] * 100, [0] * 60 + [1] * 40))
    assert "60.0 %" in line and "--method linear" in line
    few = scores([0] * 10, [0] * 6 + [1] * 4)
    assert advice(RECORD, curve(1.0, 0.5), few) == []


def test_rare_classes_that_are_missed_are_said_with_class_weights() -> None:
    labels = [0] * 95 + [1] * 5
    (line,) = advice(RECORD, curve(1.0, 0.5), scores([0] * 95 + [1] + [0] * 4, labels))
    assert "96.0 %" in line and "--class-weights balanced" in line
