"""How good is a model on a set: scores, and the outputs they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import numpy as np
import torch
from accelerate.utils import gather
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..core.checks import whole
from ..core.errors import DataError
from ..core.modes import evaluating
from ..processes.exchange import answered
from .objectives import logits_of
from .order import Batch, Key, Reader, read, size_of, to_device
from .plain_data import as_dataset
from .precision import autocast, compute_dtype
from .processes import processes
from .scores import Scores
from .tasks import Task, task_of


def evaluate(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    task: Task | None = None,
    batch_size: int = 64,
    workers: int = 0,
    watch: Callable[[], None] = lambda: None,
) -> Scores:
    """Score a model on a dataset of tensors: the core of `intarsia.evaluate`.

    task: None for the one that suits the dataset's labels; batch_size: samples in a forward;
      workers: processes that load data, 0 = this one; watch: called before each batch; an error
      that it raises ends the evaluation.
    """
    whole("batch_size", batch_size, 1, fix="Try 64.")
    dataset = as_dataset(dataset)
    task = task or task_of(dataset)
    return task.scores(*each(model, dataset, task, task.rows, batch_size, workers, watch))


@overload
def predict(
    model: nn.Module, dataset: Tensor | np.ndarray, *, batch_size: int = 64, workers: int = 0
) -> Tensor: ...
@overload
def predict(
    model: nn.Module, dataset: Dataset[Any], *, batch_size: int = 64, workers: int = 0
) -> tuple[Tensor, Tensor]: ...
def predict(
    model: nn.Module,
    dataset: Dataset[Any] | Tensor | np.ndarray,
    *,
    batch_size: int = 64,
    workers: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return a model's logits (n, classes) float32 and the labels (n,) of a dataset, on the CPU.

    They are in the dataset's order. dataset: as `fit` takes it; or inputs (n, ...) alone, of which
    the logits alone are returned; batch_size: samples in a forward; workers: processes that load
    data, 0 = this one.
    """
    alone = isinstance(dataset, Tensor | np.ndarray)
    data: Any = as_dataset(dataset, unlabelled=True)
    logits, labels = each(model, data, task_of(data), lambda z, b: (z, b[1]), batch_size, workers)
    return logits if alone else (logits, labels)


@torch.no_grad()
def each(
    model: nn.Module,
    dataset: Dataset[Any],
    task: Task,
    rows_of: Callable[[Tensor, Batch], tuple[Tensor, ...]],
    batch_size: int,
    workers: int,
    watch: Callable[[], None] = lambda: None,
) -> tuple[Tensor, ...]:
    """Run a model over a dataset and return what `rows_of` computes from each batch.

    rows_of: function of the output and the batch, which returns tensors with one row for each
      sample; these are returned for all samples, on the CPU, in the dataset's order. watch: called
      before each batch. With several processes each computes a share, and all get the rows of the
      whole set.
    Raises: DataError for an empty dataset.
    """
    count = size_of(dataset)
    if not count:
        raise DataError("evaluation samples", got=0, want="at least 1", fix="Give it some.")
    device, dtype = device_of(model), compute_dtype(model)
    state = processes()
    share = -(-count // state.num_processes)
    # the last shares repeat the last sample, so that all have one size to gather
    first = share * state.process_index
    mine = [min(i, count - 1) for i in range(first, first + share)]
    keys: list[Key] = [(0, tuple(mine[i : i + batch_size])) for i in range(0, share, batch_size)]
    outputs: list[tuple[Tensor, ...]] = []
    with evaluating(model):
        for x, y in read(Reader(dataset, seed=0, task=task), keys, workers):
            watch()
            batch = to_device(x, device), y.to(device)
            with autocast(device, dtype):
                output = logits_of(model, batch[0])
            outputs.append(rows_of(output, batch))
    # join the batches: one tensor for each kind of row
    rows = tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))
    if state.num_processes > 1:
        with answered(lambda: "an evaluation"):
            rows = tuple(gather(part) for part in rows)
    # without the repeated samples at the end
    return tuple(part[:count].cpu() for part in rows)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
