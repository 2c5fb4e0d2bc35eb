"""Arrays and tensors as data sets, wherever a data set is taken."""

from __future__ import annotations

import numpy as np
import torch
from tiny import CLASSES, host, pictures
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from intarsia import evaluate, fit
from intarsia.core.errors import DataError
from intarsia.train import features, linear_probe, predict
from intarsia.train.folds import deal
from intarsia.train.plain_data import as_dataset
from intarsia.train.probe import converged_probe

from ..refusals import refused


def drawn(count: int = 24) -> tuple[Tensor, Tensor]:
    """Return pictures and labels as two tensors."""
    x, y = pictures(count).tensors
    return x, y


def test_a_pair_of_arrays_is_the_data_set_of_its_tensors() -> None:
    x, y = drawn()
    model = host()
    scores = evaluate(model, TensorDataset(x, y)).scores()
    assert evaluate(model, (x, y)).scores() == scores  # pyright: ignore
    arrays = x.double().numpy(), y.numpy().astype(np.int32)
    assert evaluate(model, arrays).scores() == scores  # pyright: ignore


def test_inputs_alone_have_logits_and_features_and_no_labels() -> None:
    x, y = drawn()
    model = host()
    logits, labels = predict(model, TensorDataset(x, y))
    assert torch.equal(labels, y) and torch.equal(predict(model, x), logits)
    rows, _ = features(model, TensorDataset(x, y))
    assert torch.equal(features(model, x.numpy()), rows)
    with refused(DataError, what="data"):
        evaluate(model, x)  # pyright: ignore


def test_fit_takes_inputs_and_labels_as_two_arguments() -> None:
    x, y = drawn()
    models = host(), host()
    runs = [
        fit(models[0], x, y, epochs=1, lr=1e-3, trackers=()),  # pyright: ignore
        fit(models[1], TensorDataset(x, y), epochs=1, lr=1e-3, trackers=()),
    ]
    assert runs[0].record["results"]["steps"] == runs[1].record["results"]["steps"] > 0
    trained = (model.state_dict() for model in models)
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in trained), strict=True))


def test_rows_of_ids_are_their_own_labels() -> None:
    ids = torch.arange(12).reshape(3, 4)
    rows = as_dataset(ids)
    assert all(torch.equal(row["input_ids"], ids[i]) for i, row in enumerate(rows))
    assert all(row["labels"] is row["input_ids"] for row in rows)


def test_what_does_not_belong_together_is_refused() -> None:
    x, y = drawn()
    with refused(DataError, what="inputs and labels", got="24 and 23 of them"):
        as_dataset(x, y[:-1])
    # what is no plain data is left to those that read it
    loader = DataLoader(TensorDataset(x, y))
    assert as_dataset(loader) is loader


def test_a_probe_without_a_test_part_is_scored_on_its_folds() -> None:
    x, y = drawn(40)
    metrics = linear_probe(host(), TensorDataset(x, y))
    assert metrics.logits.shape == (40, CLASSES) and torch.equal(metrics.labels, y)
    # it is what a probe says of rows that it was fitted without
    rows, labels = features(host(), TensorDataset(x, y))
    fold = deal(labels.numpy(), 5, 0)
    probe = converged_probe(rows.numpy(), labels.numpy(), CLASSES, fold=fold)
    assert torch.equal(metrics.logits, probe.held_out)
