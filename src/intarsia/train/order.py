"""Which sample when: the order of the data as a pure function of seed and epoch."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from ..core.errors import ConfigError, DataError, TrainingError
from ..core.seeds import mix
from .randomness import seeded_cpu

if TYPE_CHECKING:
    from .tasks.task import Task

Inputs = Tensor | Mapping[str, Tensor]  # pictures, or a model's arguments by name
Batch = tuple[Inputs, Tensor]
IGNORED = -100  # the label of places that are not to be predicted
Key = tuple[int, tuple[int, ...]]  # (epoch, positions)


@dataclass(frozen=True)
class Order:
    """Positions of each batch of each epoch; `shares` equal parts make a batch.

    A last batch that does not divide into equal shares is cut until it does (at most shares - 1
    images of an epoch, other ones each time), so that every process does the same work and the
    mean over processes is the mean over the batch.
    """

    count: int
    batch_size: int
    seed: int
    shares: int = 1

    def __post_init__(self) -> None:
        """Check that processes get equally many samples.  Raises: DataError, ConfigError."""
        if self.count < self.shares:
            subject, fix = "training images", "Give the run some images to learn from."
            raise DataError(subject, got=self.count, want=f"at least {self.shares}", fix=fix)
        if self.batch_size % self.shares:
            want = f"a multiple of {self.shares} (processes times accumulate)"
            fix = f"Use {max(1, round(self.batch_size / self.shares)) * self.shares}."
            raise ConfigError("batch_size", got=self.batch_size, want=want, fix=fix)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self.count, self.batch_size)
        # a last batch counts if every share gets a sample
        return full + (rest >= self.shares)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[int, ...]]:
        """Yield the batches of an epoch as positions of samples, from batch `first` on."""
        # a generator for each epoch: no state has to be saved to know a later order
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        order = torch.randperm(self.count, generator=generator).tolist()
        for i in range(first, self.steps):
            batch = order[i * self.batch_size : (i + 1) * self.batch_size]
            # so that every process has as many samples
            yield tuple(batch[: len(batch) // self.shares * self.shares])

    def part(self, batch: Sequence[int], share: int) -> tuple[int, ...]:
        """Return the positions of one share of a batch, which one process computes."""
        size = len(batch) // self.shares
        return tuple(batch[share * size : (share + 1) * size])


@runtime_checkable
class Augments(Protocol):
    """A dataset with items that differ from epoch to epoch."""

    def drawn(self, epoch: int, position: int) -> Any:
        """Return an item as that epoch sees it."""
        ...


@runtime_checkable
class HasDigests(Protocol):
    """A dataset that knows the SHA-256 of each of its samples; none of them if it is not known."""

    @property
    def digests(self) -> Sequence[str]: ...


def digests_of(dataset: object) -> Sequence[str]:
    """Return the SHA-256 of each sample, or nothing for a dataset that does not know them."""
    return dataset.digests if isinstance(dataset, HasDigests) else ()


def classes_of(dataset: object) -> Sequence[Any] | None:
    """Return the names of the classes, of a dataset that has them: ours, or torchvision's."""
    return getattr(dataset, "classes", None)


class Reader(Dataset[Batch]):
    """Whole batches of a dataset by (epoch, positions): (inputs, target), as the task has them.

    Inputs are a tensor (B, ...), or tensors by the names of the model's arguments; rows of tokens
    are padded to the longest of their batch, which `attention_mask` then says.

    Random transforms see generators seeded by (seed, epoch, position): what a picture looks like
    does not depend on the batch, the worker or the process that reads it.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, task: Task | None = None) -> None:
        self.dataset, self.seed, self.task = dataset, seed, task

    def __len__(self) -> int:
        return size_of(self.dataset)

    def __getitem__(self, key: Key) -> Batch:
        """Return a batch, (inputs, target), of an epoch and the positions of its samples."""
        epoch, positions = key
        task = self.task
        # tensors in memory need no loop over samples, and no random transform sees them
        tensors = _indexed_batch(self.dataset, positions) if task is None or task.labelled else None
        if tensors is not None:
            return tensors if task is None else task.batch(*tensors)
        items = []
        for position in positions:
            # a sample's random transforms do not depend on the worker that reads it
            with seeded_cpu(mix(self.seed, epoch, position)):
                items.append(_sample_at(self.dataset, epoch, position))
        if task is None:
            return stack([pair(item) for item in items])
        return task.batch(*task.collate(items))


def nbytes(inputs: Inputs) -> int:
    """Return the bytes of a batch's inputs."""
    parts = [inputs] if isinstance(inputs, Tensor) else inputs.values()
    return sum(part.nbytes for part in parts)


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """Move the inputs of a batch to a device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device, non_blocking=True)
    return {name: part.to(device, non_blocking=True) for name, part in inputs.items()}


def size_of(dataset: Dataset[Any]) -> int:
    """Return the number of samples of a dataset.

    Raises: DataError for a dataset without a length, and for a loader of batches.
    """
    subject, want = f"dataset {type(dataset).__name__}", "a map-style dataset"
    if isinstance(dataset, DataLoader):
        fix = "Give the loader's own dataset, and batch_size=..."
        raise DataError(subject, got="a loader of batches", want=want, fix=fix)
    try:
        return len(dataset)  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        fix = "Give it __len__ and __getitem__, or collect it into a list."
        raise DataError(subject, got="no length", want=want, fix=fix) from error


def _indexed_batch(dataset: Dataset[Any], positions: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """Return a batch (inputs, targets) of a TensorDataset by indexing; None for other datasets."""
    while isinstance(dataset, Subset):
        positions = [dataset.indices[i] for i in positions]
        dataset = dataset.dataset
    if not isinstance(dataset, TensorDataset) or len(dataset.tensors) != 2:
        return None
    index = torch.as_tensor(positions, dtype=torch.int64)
    x, y = dataset.tensors
    return x[index], y[index]


def _sample_at(dataset: Dataset[Any], epoch: int, position: int) -> Any:
    """Return a sample as an epoch sees it; datasets that do not augment ignore the epoch."""
    while isinstance(dataset, Subset):
        # a subset hides whether its dataset augments
        dataset, position = dataset.dataset, dataset.indices[position]
    return dataset.drawn(epoch, position) if isinstance(dataset, Augments) else dataset[position]


def pair(item: Any) -> tuple[Any, Any]:
    """Split a sample into (inputs, label); a mapping is as Hugging Face datasets give it.

    Raises: DataError for a sample of another form.
    """
    if isinstance(item, Mapping):
        label = next((k for k in ("labels", "label") if k in item), None)
        if label and len(item) > 1:
            return input_of(item), item[label]
        got: object = f"a mapping with {sorted(item)}"
    elif isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    else:
        got = f"{type(item).__name__}"
    want = "(image, label), or a mapping with labels and the model's arguments"
    fix = "Wrap the dataset so that it returns that, or name the task: task=..."
    raise DataError("an item of the dataset", got=got, want=want, fix=fix)


def input_of(item: Any) -> Any:
    """Return the part of a sample that the model gets, with or without a label next to it."""
    if isinstance(item, Mapping):
        # timm takes a tensor, transformers its arguments by name: pixel_values alone serve both
        rest = {k: v for k, v in item.items() if k not in ("labels", "label")}
        return rest["pixel_values"] if set(rest) == {"pixel_values"} else rest
    return item[0] if isinstance(item, tuple | list) and item else item


def stack(rows: list[tuple[Any, Any]]) -> tuple[Inputs, Any]:
    """Collate (inputs, label) pairs into one batch; rows of tokens are padded.

    Raises: DataError for samples that do not fit together.
    """
    try:
        first = rows[0][0]
        # pictures have one size already; texts have their own lengths
        if isinstance(first, Mapping) and "input_ids" in first:
            rows = _pad_rows(rows)
        return default_collate(rows)
    except (TypeError, RuntimeError) as error:
        raise DataError(
            "a batch of images",
            got=str(error).strip().splitlines()[-1],
            want="tensors of one shape and whole-number labels",
            fix="Resize the images and turn them into tensors in the dataset's transform.",
        ) from error


def _pad_rows(rows: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Pad rows of tokens on the right, to the length of the longest."""
    longest = max(len(x["input_ids"]) for x, _ in rows)
    padded = []
    for x, y in rows:
        count = len(x["input_ids"])
        of_token = {k: torch.as_tensor(v) for k, v in x.items()}
        mask = of_token.setdefault("attention_mask", torch.ones(count, dtype=torch.int64))
        rest = (0, longest - count)
        for name, value in of_token.items():
            # whatever has a row for each token is padded, all else left alone
            if value.shape[:1] == mask.shape:
                of_token[name] = F.pad(value, (0, 0) * (value.ndim - 1) + rest)  # the first axis
        y = torch.as_tensor(y)
        padded.append((of_token, F.pad(y, rest, value=IGNORED) if y.ndim else y))
    return padded


def labels_of(dataset: Dataset[Any]) -> np.ndarray | None:
    """Return all labels of a dataset; None if they are only known by reading each sample."""
    if isinstance(dataset, Subset):
        labels = labels_of(dataset.dataset)
        return None if labels is None else labels[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return dataset.tensors[1].numpy(force=True)
    for name in ("labels", "targets"):
        # torchvision's and other datasets list them
        values = getattr(dataset, name, None)
        if values is not None and len(values) == size_of(dataset):
            return np.asarray(values)
    return None


def read(reader: Reader, keys: Sequence[Key], workers: int) -> Iterator[Batch]:
    """Yield the batches of the keys, in their order.

    keys: (epoch, positions) of each batch; workers: processes that load data, 0 = this one.
    Raises: TrainingError if a worker process fails.
    """
    if workers and keys:
        # workers put batches into shared memory, which containers often have little of
        first = nbytes(reader[keys[0]][0])
        workers = usable_workers(workers, bytes_ahead=2 * workers * first)
    if not workers:
        yield from (reader[key] for key in keys)
        return
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=keys,  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        # its own generator: making an iterator must not move the global one
        generator=torch.Generator().manual_seed(0),
        pin_memory=torch.cuda.is_available(),
    )
    ahead: Any = None
    try:
        ahead = iter(loader)
        yield from ahead
    except (OSError, RuntimeError) as error:
        text = str(error)
        # an error of the dataset itself is its own best message
        if isinstance(error, RuntimeError) and "worker" not in text and "shared memory" not in text:
            raise
        subject, want = f"{workers} workers that read data", "room for them in memory and /dev/shm"
        fix = "Use workers=0, or give the container more shared memory (--shm-size)."
        raise TrainingError(
            subject, got=text.strip().splitlines()[0], want=want, fix=fix
        ) from error
    finally:
        if ahead is not None:
            ahead._shutdown_workers()  # left to the collector of garbage, each is waited for, 5 s


def usable_workers(count: int, *, bytes_ahead: int, shm: Path = Path("/dev/shm")) -> int:
    """Return `count`, or 0 with a warning if shared memory is too small for so many processes."""
    reason = ""
    if shm.is_dir() and (free := shutil.disk_usage(shm).free) < bytes_ahead:
        reason = f"{free / 1e6:.0f} MB free in {shm}, want {bytes_ahead / 1e6:.0f} MB"
    else:
        try:
            # a system without /dev/shm, or with a quota, refuses it here and not in a worker
            torch.empty(max(1, bytes_ahead), dtype=torch.uint8).share_memory_()
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
    if not reason:
        return count
    fix = "Give the container more (docker --shm-size=2g), or set workers=0."
    warnings.warn(
        f"{count} worker processes cannot start: {reason}. Making batches in this process. {fix}",
        stacklevel=3,
    )
    return 0
