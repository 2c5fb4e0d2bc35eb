"""How good is a model on a set: loss, accuracy, and the logits they come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..core.errors import ConfigError, DataError
from .objectives import logits_of
from .order import Key, Reader, check_range, read, size_of
from .precision import autocast, compute_dtype
from .processes import processes


@dataclass(frozen=True)
class Metrics:
    """Scores of a set of n images, in its own order.

    loss: mean cross-entropy; accuracy: share of right answers; balanced_accuracy: mean over the
    classes that occur of the share of right answers.  logits: (n, classes); labels: (n,).
    """

    loss: float
    accuracy: float
    balanced_accuracy: float
    logits: Tensor
    labels: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Metrics:
        """Scores of logits (n, classes) against labels (n,)."""
        right = (logits.argmax(1) == labels).double()
        count = torch.bincount(labels, minlength=logits.shape[1]).double()
        hits = torch.bincount(labels, right, minlength=logits.shape[1])
        seen = count > 0
        return cls(
            loss=float(F.cross_entropy(logits.double(), labels)),
            accuracy=float(right.mean()),
            balanced_accuracy=float((hits[seen] / count[seen]).mean()),
            logits=logits,
            labels=labels,
        )

    def scores(self) -> dict[str, float]:
        """The three numbers, for JSON."""
        names = ("loss", "accuracy", "balanced_accuracy")
        return {name: getattr(self, name) for name in names}


def evaluate(
    model: nn.Module, dataset: Dataset[Any], *, batch_size: int = 64, workers: int = 0
) -> Metrics:
    """Score a model in evaluation mode, in the type its frozen weights are held in.

    Random experts are merged there, so one forward says everything. With several processes each
    takes its share, and all get the scores of the whole set.
    Raises: DataError for an empty set, or labels outside the model's classes.
    """
    if batch_size < 1:
        raise ConfigError("batch_size", got=batch_size, want="at least 1", fix="Try 64.")
    logits, labels = predict(model, dataset, batch_size=batch_size, workers=workers)
    check_range(labels, logits.shape[1])
    return Metrics.of(logits, labels)


@torch.no_grad()
def predict(
    model: nn.Module, dataset: Dataset[Any], *, batch_size: int = 64, workers: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) float32 and labels (n,), on the CPU, in the set's order."""
    count = size_of(dataset)
    if not count:
        raise DataError("evaluation images", got=0, want="at least 1", fix="Give it some images.")
    device, dtype = device_of(model), compute_dtype(model)
    state = processes()
    share = -(-count // state.num_processes)
    # the last shares repeat the last image, so that all have one size to gather
    first = share * state.process_index
    mine = [min(i, count - 1) for i in range(first, first + share)]
    keys: list[Key] = [(0, tuple(mine[i : i + batch_size])) for i in range(0, share, batch_size)]
    logits, labels = [], []
    with evaluating(model):
        for x, y in read(Reader(dataset, seed=0), keys, workers):
            with autocast(device, dtype):
                logits.append(logits_of(model, x.to(device, non_blocking=True)))
            labels.append(y)
    both = torch.cat(logits), torch.cat(labels).to(device)
    if state.num_processes > 1:
        both = gather(both[0]), gather(both[1])
    return both[0][:count].cpu(), both[1][:count].cpu()


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter is."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is as it was."""
    with modes_kept(model):
        model.eval()
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards every module is in the mode it was in."""
    before = {m: m.training for m in model.modules()}
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode
