"""Sets as tensors: prepared one picture at a time, or held in memory as a whole."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

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


def mix(*numbers: int) -> int:
    """A 63-bit seed from several numbers; near inputs give unrelated seeds."""
    text = ":".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
