"""Class weights: a law of the mean, what "balanced" means, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from intarsia import fit
from intarsia.core.errors import ConfigError, UnknownName
from intarsia.train import Recipe
from intarsia.train.tasks import Classes, Heads
from intarsia.train.tasks.choose import chosen
from intarsia.train.weights import WeightedCrossEntropy, weights_of

from ..refusals import refused
from .tiny import host, pictures

LABELS = np.array([0, 0, 0, 1, 2, 2])


def test_balanced_classes_count_the_same() -> None:
    weights = weights_of("balanced", None, LABELS)
    shares = np.bincount(LABELS) * np.array(weights)
    assert np.allclose(shares, len(LABELS) / 3)  # every class in all, and 1 a sample in the mean
    assert weights_of("balanced", "abc", LABELS) == weights


def test_weights_by_name_are_in_the_order_of_the_classes() -> None:
    assert weights_of({"c": 3, "a": 0.5}, ("a", "b", "c"), None) == (0.5, 1.0, 3.0)
    assert weights_of("c=3, a=0.5", ("a", "b", "c"), None) == (0.5, 1.0, 3.0)
    assert weights_of([1, 2], None, None) == (1.0, 2.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_the_mean_of_weighted_samples(smoothing: float) -> None:
    logits, labels = torch.randn(7, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0, 2, 2])
    loss = WeightedCrossEntropy((0.5, 1.0, 3.0), smoothing)
    losses = [
        (0.5, 1.0, 3.0)[int(y)] * F.cross_entropy(z[None], y[None], label_smoothing=smoothing)
        for z, y in zip(logits, labels, strict=True)
    ]
    assert torch.allclose(loss(logits, labels), torch.stack(losses).mean())
    parts = 3 * loss(logits[:3], labels[:3]) + 4 * loss(logits[3:], labels[3:])
    assert torch.allclose(parts / 7, loss(logits, labels))  # so that accumulation changes nothing
    loss_of_equals = WeightedCrossEntropy((1.0, 1.0, 1.0), smoothing)(logits, labels)
    assert torch.allclose(
        loss_of_equals, F.cross_entropy(logits, labels, label_smoothing=smoothing)
    )


def test_a_weight_moves_what_is_learned() -> None:
    data = pictures(240)
    heavy: dict[str, Any] = {"epochs": 2, "batch_size": 24, "lr": 1e-2}
    shares: list[float] = []
    for weights in (None, [1.0, 50.0, 1.0]):
        model = host()
        fit(model, data, class_weights=weights, **heavy)
        with torch.no_grad():
            shares.append(float(model(data.tensors[0]).softmax(1)[:, 1].mean()))
    assert shares[1] > shares[0]


@pytest.mark.parametrize(
    ("weights", "error", "want"),
    [
        ("a", ConfigError, "balanced, or a number for each name, once: a=1,b=2"),
        ("a=1,a=2", ConfigError, "balanced, or a number for each name, once: a=1,b=2"),
        ("a=x", ConfigError, "balanced, or a number for each name, once: a=1,b=2"),
        ({"a": 0.0}, ConfigError, "above 0"),
        ([1.0, float("nan")], ConfigError, "a finite number"),
    ],
)
def test_weights_that_cannot_be(weights: Any, error: type[Exception], want: str) -> None:
    with refused(error, want=want):
        Recipe(class_weights=weights)


def test_weights_that_do_not_fit_the_data() -> None:
    data = TensorDataset(torch.randn(6, 3, 8, 8), torch.as_tensor(LABELS))
    rows = TensorDataset(torch.randn(6, 3, 8, 8), torch.eye(6).long())
    with refused(UnknownName, what="unknown class in class_weights", got="'drak'", near=("dark",)):
        weights_of({"drak": 2.0}, ("dark", "light"), None)
    with refused(ConfigError, what="class_weights", got="names, of data without names of classes"):
        weights_of({"dark": 2.0}, None, None)
    with refused(ConfigError, what="class_weights='balanced'"):
        weights_of("balanced", "abcd", LABELS)
    with refused(ConfigError, what="class_weights", got="mixed images with them"):
        Recipe(class_weights="balanced", mixup=0.2)
    recipe = Recipe(class_weights="balanced")
    with refused(ConfigError, what="class_weights", got="balanced for MultiLabel"):
        chosen(None, rows, recipe)
    task = chosen(None, data, recipe)
    assert isinstance(task, Classes) and task.weights == weights_of("balanced", None, LABELS)
    with refused(ConfigError, what="class_weights", got="3 for 2 classes"):
        task.seen(torch.zeros(1, 2), (torch.zeros(1), torch.zeros(1)))
    with refused(ConfigError, what="heads of tasks", got="class_weights with them"):
        Heads(weights=(1.0, 2.0))
