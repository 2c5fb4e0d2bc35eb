"""Batches that depend on (seed, epoch) alone: on no worker, no resume, no global generator.

data = Prepared(images, train_transform(inputs, augment="light"), seed=0)
batches = loader(data, batch=32, seed=0, shuffle=True)
seek(batches, epoch=3, batch=17)              # go on where a killed run stood
"""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from intarsia.core.errors import ConfigError
from intarsia.data.images import ImageSet
from intarsia.data.transforms import Transform

Draw = tuple[int, int]  # (epoch, position in the set)
MEMORY_SHARE = 0.5  # of the memory that is free, for a set held as tensors


class Prepared(Dataset[tuple[Tensor, int]]):
    """A set with a transform; item (epoch, i) draws its augmentation from (seed, epoch, i)."""

    def __init__(self, images: ImageSet, transform: Transform, *, seed: int = 0) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: int | Draw) -> tuple[Tensor, int]:
        epoch, index = draw if isinstance(draw, tuple) else (0, draw)
        picture, label = self.images[index]
        with torch.random.fork_rng(devices=[]):  # the caller's generator stays where it was
            torch.default_generator.manual_seed(mix(self.seed, epoch, index))
            return self.transform(picture), label


class EpochSampler(Sampler[Any]):
    """Positions 0..n-1, shuffled by (seed, epoch), from any starting point on.

    Yields ints, or (epoch, position) pairs for `Prepared`. `set_epoch` is what accelerate calls
    before each epoch.
    """

    def __init__(self, n: int, *, seed: int = 0, shuffle: bool = True, pairs: bool = False) -> None:
        self.n, self.seed, self.shuffle, self.pairs = n, seed, shuffle, pairs
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; a starting point set for another epoch is dropped."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def seek(self, epoch: int, start: int) -> None:
        """Begin `epoch` at its sample number `start`."""
        if not 0 <= start <= self.n or epoch < 0:
            raise ConfigError(
                "place to start from",
                got=f"epoch {epoch}, sample {start}",
                want=f"epoch >= 0 and a sample from 0 to {self.n}",
                fix="Resume with the data the run was started with.",
            )
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.n - self.start

    def __iter__(self) -> Iterator[Any]:
        order: list[int] = list(range(self.n))
        if self.shuffle:
            generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
            order = torch.randperm(self.n, generator=generator).tolist()
        for index in order[self.start :]:
            yield (self.epoch, index) if self.pairs else index


def loader(
    dataset: Dataset[Any],
    *,
    batch: int,
    seed: int = 0,
    shuffle: bool = False,
    workers: int | Literal["auto"] = "auto",
    drop_last: bool = False,
) -> DataLoader[Any]:
    """Return a DataLoader over `dataset` in the order of `EpochSampler`.

    workers: processes that decode; "auto" is none on machines of up to 4 cores or for tensors in
    memory. When they would not have enough shared memory, a warning says so and the batches are
    made in this process.
    Raises: ConfigError for a batch below 1, workers below 0, or an empty set.
    """
    n = len(cast(Sized, dataset))
    if batch < 1 or n == 0 or (workers != "auto" and workers < 0):
        raise ConfigError(
            "batches",
            got=f"batch={batch}, workers={workers}, {n} images",
            want="batch >= 1, workers >= 0, at least one image",
            fix="Correct the numbers.",
        )
    prepared = isinstance(dataset, Prepared)
    count = default_workers(dataset) if workers == "auto" else workers
    if count:
        count = usable_workers(count, bytes_ahead=_batch_bytes(dataset, batch) * 2 * count)
    return DataLoader(
        dataset,
        batch_size=batch,
        sampler=EpochSampler(n, seed=seed, shuffle=shuffle, pairs=prepared),
        num_workers=count,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=count > 0,
        generator=torch.Generator().manual_seed(
            mix(seed)
        ),  # else each epoch draws from torch's own
    )


def seek(batches: DataLoader[Any], *, epoch: int, batch: int = 0) -> None:
    """Let the next pass over a `loader` be `epoch` from its batch number `batch` on.

    Not for a loader that accelerate has divided among processes: use
    `accelerate.skip_first_batches` there.
    """
    if not isinstance(batches.sampler, EpochSampler) or batches.batch_size is None:
        raise ConfigError(
            "loader to seek in",
            got=f"one with a {type(batches.sampler).__name__}",
            want="one made by intarsia.data.loader",
            fix="Make it with loader(...), or skip the batches yourself.",
        )
    batches.sampler.seek(epoch, min(batch * batches.batch_size, batches.sampler.n))


def tensors(images: ImageSet, transform: Transform, *, threads: int = 2) -> TensorDataset:
    """Transform a set once and hold it in memory: (n, 3, H, W) float32 and (n,) int64.

    Raises: ConfigError when that would take more than half of the free memory.
    Not for random transforms: every epoch would see the same draw.
    """
    first = transform(images.image(0))
    needed, free = first.nbytes * len(images), psutil.virtual_memory().available
    if needed > free * MEMORY_SHARE:
        raise ConfigError(
            f"{images.name!r} as tensors of {tuple(first.shape)}",
            got=f"{needed / 1e9:.1f} GB",
            want=f"at most half of the free {free / 1e9:.1f} GB",
            fix="Use Prepared(images, transform), smaller pictures, or fewer of them.",
        )
    out = first.new_empty((len(images), *first.shape))

    def fill(index: int) -> None:
        out[index] = transform(images.image(index))

    with ThreadPoolExecutor(threads) as pool:  # Pillow releases the GIL
        list(pool.map(fill, range(len(images))))
    return TensorDataset(out, torch.as_tensor(images.labels, dtype=torch.int64))


def default_workers(dataset: Dataset[Any]) -> int:
    """No processes for tensors in memory or on small machines, else half the cores, at most 8."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return 0 if cores <= 4 or isinstance(dataset, TensorDataset) else min(8, cores // 2)


def usable_workers(count: int, *, bytes_ahead: int, shm: Path = Path("/dev/shm")) -> int:
    """`count`, or 0 with a warning when shared memory cannot hold the batches made ahead."""
    reason = ""
    if shm.is_dir() and (free := shutil.disk_usage(shm).free) < bytes_ahead:
        reason = f"{free / 1e6:.0f} MB free in {shm}, want {bytes_ahead / 1e6:.0f} MB"
    else:
        try:
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


def _batch_bytes(dataset: Dataset[Any], batch: int) -> int:
    item = dataset[0]
    parts = item if isinstance(item, tuple | list) else (item,)
    return batch * sum(part.nbytes for part in parts if isinstance(part, Tensor))


def mix(*numbers: int) -> int:
    """A 63-bit seed from several numbers; near inputs give unrelated seeds."""
    text = ":".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
