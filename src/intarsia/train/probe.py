"""The linear probe: a classifier on a frozen trunk's features, in one pass over the images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..core.errors import ConfigError, DataError
from ..core.heads import heads_of
from .evaluation import each
from .order import Batch
from .record import bare
from .scores import Metrics
from .tasks import Classes

LEAST = 1e-12  # probability of a class that the training images do not show


def linear_probe(
    model: nn.Module,
    train: Dataset[Any],
    test: Dataset[Any],
    *,
    inverse_decay: float = 1.0,
    batch_size: int = 64,
    workers: int = 0,
) -> Metrics:
    """Train a logistic regression on the features before the model's head; score it on `test`.

    Features are standardised on `train`; every image is computed once. inverse_decay: C of
    sklearn's LogisticRegression, smaller values pull the weights to 0 more strongly; batch_size:
    samples in a forward; workers: processes that load data. The model is not changed.
    Raises: ConfigError for a model without a head; DataError if `train` shows only one class.
    """
    x, y = features(model, train, batch_size=batch_size, workers=workers)
    if len(y.unique()) < 2:
        subject, got = "classes of the training images", len(y.unique())
        raise DataError(subject, got=got, want="at least 2", fix="Add images of another class.")
    regression = LogisticRegression(C=inverse_decay, max_iter=2000)
    fitted = make_pipeline(StandardScaler(), regression).fit(x.numpy(), y.numpy())
    x, labels = features(model, test, batch_size=batch_size, workers=workers)
    classes = int(torch.cat([y, labels]).max()) + 1
    # test images may show a class that the training images do not: no probability is 0
    chance = np.full((len(labels), classes), LEAST)
    chance[:, regression.classes_] = fitted.predict_proba(x.numpy()).clip(LEAST)
    return Metrics.of(torch.from_numpy(chance).log().float(), labels)


def features(
    model: nn.Module, dataset: Dataset[Any], *, batch_size: int = 64, workers: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the inputs of the model's head, (n, d) float32, and the labels (n,), on the CPU.

    They are in the dataset's order, in every process. batch_size: samples in a forward; workers:
    processes that load data.
    Raises: ConfigError for a model without one head.
    """
    heads = heads_of(bare(model))
    if len(heads) != 1:
        subject, got = (
            f"head of {type(model).__name__}",
            f"{len(heads)} of them" if heads else "none",
        )
        fix = "Build the model with num_classes above 0, and without distillation."
        raise ConfigError(subject, got=got, want="one classifier to look in front of", fix=fix)
    # the hook sees the head's input; the forward's own output is thrown away
    inputs: list[Tensor] = []

    def instead(_logits: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        return inputs.pop(), batch[1]

    hook = heads[0].register_forward_pre_hook(lambda _head, args: inputs.append(args[0].float()))
    try:
        # an evaluation whose rows are the recorded inputs of the head
        rows, labels = each(model, dataset, Classes(), instead, batch_size, workers)
        return rows, labels
    finally:
        hook.remove()
