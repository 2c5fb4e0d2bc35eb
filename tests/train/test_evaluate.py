"""Scores, and the linear probe."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss
from tiny import CLASSES, host, pictures, stir
from torch import nn
from torch.utils.data import TensorDataset

from intarsia import Mosa, adapt
from intarsia.core.errors import ConfigError, DataError
from intarsia.train import Metrics, evaluate, features, linear_probe, predict

from ..refusals import refused


@given(st.integers(1, 40), st.integers(2, 5), st.integers(0, 2**20))
def test_scores_are_those_of_sklearn(count: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    metrics = Metrics.of(logits, labels)
    guess, truth = logits.argmax(1).numpy(), labels.numpy()
    assert metrics.accuracy == pytest.approx(accuracy_score(truth, guess))
    true_classes = set(truth.tolist())
    if set(guess.tolist()) <= true_classes and len(true_classes) > 1:  # sklearn warns otherwise
        assert metrics.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, guess))
    probability = logits.double().softmax(1).numpy()
    assert metrics.loss == pytest.approx(log_loss(truth, probability, labels=np.arange(classes)))


def test_evaluation_is_deterministic_and_leaves_the_model_as_it_was() -> None:
    model = host(dropout=0.5)
    stir(model)
    model.train()
    model.head.eval()
    state = torch.get_rng_state()
    first, again = (evaluate(model, pictures(21), batch_size=b) for b in (4, 21))
    torch.testing.assert_close(first.logits, again.logits)
    assert first.accuracy == again.accuracy and first.logits.shape == (21, CLASSES)
    assert torch.equal(first.labels, pictures(21).tensors[1])
    assert model.training and model.blocks[0].dropout.training and not model.head.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not first.logits.requires_grad
    assert first.scores().keys() == {"loss", "accuracy", "balanced_accuracy", "ece"}


def test_what_cannot_be_scored_is_an_error() -> None:
    x, y = pictures(6).tensors
    with refused(DataError, what="evaluation samples", got=0):
        evaluate(host(), TensorDataset(x[:0], y[:0]))
    with refused(DataError, what="labels", got="7 ... 7"):
        evaluate(host(), TensorDataset(x, torch.full((6,), 7)))
    with refused(ConfigError, what="batch_size", got=0):
        evaluate(host(), pictures(6), batch_size=0)


def vit(**options: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, depth=1, embed_dim=32, num_heads=2,
            **({"num_classes": CLASSES} | options),
        )  # fmt: skip


def large(count: int, seed: int = 0) -> TensorDataset:
    x, y = pictures(count, seed).tensors
    return TensorDataset(x.repeat_interleave(4, 2).repeat_interleave(4, 3), y)


@pytest.mark.parametrize("adapted", [False, True])
def test_the_probe_looks_at_what_goes_into_the_head(adapted: bool) -> None:
    model = vit()
    states, labels = features(adapt(model, Mosa()) if adapted else model, large(10), batch_size=3)
    host_model = vit().eval()
    with torch.no_grad():
        x = large(10).tensors[0]
        states_wanted = host_model.forward_head(host_model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(states, states_wanted)
    assert torch.equal(labels, large(10).tensors[1])


def test_the_probe_learns_from_one_pass() -> None:
    model = vit()
    passes = []
    model.register_forward_hook(lambda _m, args, _y: passes.append(len(args[0])))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    metrics = linear_probe(model, large(120), large(60, seed=1))
    assert metrics.accuracy > 0.8 and metrics.logits.shape == (60, CLASSES)
    assert sum(passes) == 180
    assert metrics.loss == pytest.approx(Metrics.of(metrics.logits, metrics.labels).loss)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_class_that_the_probe_never_saw_counts_as_wrong() -> None:
    x, y = large(60).tensors
    metrics = linear_probe(vit(), TensorDataset(x[y < 2], y[y < 2]), TensorDataset(x, y))
    missed = metrics.logits.argmax(1)[y == 2]
    assert metrics.logits.shape == (60, 3) and not bool((missed == 2).any())


def test_probes_that_cannot_be_are_errors() -> None:
    x, y = large(6).tensors
    with refused(DataError, what="classes of the training images", got=1):
        linear_probe(vit(), TensorDataset(x, y * 0), large(6))
    with refused(ConfigError, what="head of Sequential", got="none"):
        linear_probe(nn.Sequential(nn.Flatten()), large(6), large(6))
    deit = timm.create_model("deit_tiny_distilled_patch16_224", img_size=16, depth=1)
    with refused(ConfigError, what="head of VisionTransformerDistilled"):
        features(deit, large(6))


def test_predictions_come_in_the_set_s_order() -> None:
    model = host()
    stir(model)
    logits, labels = predict(model, pictures(7), batch_size=2)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(logits, model(pictures(7).tensors[0]))
    assert torch.equal(labels, pictures(7).tensors[1])
