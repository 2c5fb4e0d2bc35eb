"""Image sets as tensors: transformed on access, or held in memory as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from intarsia.core.errors import ConfigError
from intarsia.core.seeds import mix
from intarsia.data.decode import decoding_allowed
from intarsia.data.images import ImageSet
from intarsia.data.transforms import Transform

from .transforms import SizedTransform

MEMORY_SHARE = 0.5  # of the free memory, for a set held as tensors


class Prepared(Dataset[tuple[Tensor, Any]]):
    """A set with a transform, applied on access.

    `drawn(epoch, i)` seeds the augmentation with (seed, epoch, i), so that a run can be repeated.
    """

    def __init__(self, images: ImageSet, transform: Transform, *, seed: int = 0) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.drawn(0, index)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.images.classes

    @property
    def labels(self) -> np.ndarray:
        """The labels: (n,) int64, or rows of 0 and 1."""
        return self.images.labels

    @property
    def digests(self) -> list[str]:
        """The SHA-256 of each picture's pixels; empty before `verify`."""
        return [*self.images.digests]

    def drawn(self, epoch: int, index: int) -> tuple[Tensor, Any]:
        """Return picture `index` with the augmentation of an epoch, and its label.

        The same epoch and index give the same random augmentation.
        """
        picture = self.images.image(index, side=side_of(self.transform))
        label = self.images.label(index)
        label = torch.from_numpy(label) if self.images.several else label
        with torch.random.fork_rng(devices=[]):  # leaves the caller's generator unchanged
            torch.default_generator.manual_seed(mix(self.seed, epoch, index))
            return self.transform(picture), label


class ImageTensors(TensorDataset):
    """Tensors computed of pictures, with their labels and the SHA-256 of each picture's pixels."""

    def __init__(self, *tensors: Tensor, digests: Sequence[str]) -> None:
        super().__init__(*tensors)
        self.digests = [*digests]


def side_of(transform: Transform) -> int | None:
    """Return how many px of a picture's sides a transform needs; None = all that there are."""
    return transform.side if isinstance(transform, SizedTransform) else None


def tensors(images: ImageSet, transform: Transform, *, threads: int = 2) -> ImageTensors:
    """Transform all pictures of a set once and hold them in memory.

    images: the set. transform: picture -> (3, H, W), without randomness, since every epoch would
    see the same random numbers. threads: pictures decoded at a time. Returns (n, 3, H, W) float32
    and labels.
    Raises: ConfigError when it needs more than half of the free memory.
    """
    side = side_of(transform)
    # the first picture is transformed twice, to know the size
    first = transform(images.image(0, side=side))
    # One picture tells the size of all.
    needed, free = first.nbytes * len(images), psutil.virtual_memory().available
    if needed > free * MEMORY_SHARE:
        subject = f"{images.name!r} as tensors of {tuple(first.shape)}"
        want = f"at most half of the free {free / 1e9:.1f} GB"
        fix = "Use Prepared(images, transform), smaller pictures, or fewer of them."
        raise ConfigError(subject, got=f"{needed / 1e9:.1f} GB", want=want, fix=fix)
    # Filled in place: a list of tensors and their stack would need the memory twice.
    stacked = first.new_empty((len(images), *first.shape))

    def fill(index: int) -> None:
        with decoding_allowed(images.images[index]):
            stacked[index] = transform(images.image(index, side=side))

    with ThreadPoolExecutor(threads) as pool:  # Pillow releases the GIL
        list(pool.map(fill, range(len(images))))
    labels = torch.as_tensor(images.labels, dtype=torch.int64)
    return ImageTensors(stacked, labels, digests=images.digests)


def tensors_or_prepared(images: ImageSet, transform: Transform) -> TensorDataset | Prepared:
    """Return a set as tensors in memory if they fit there, otherwise decoded on access."""
    try:
        return tensors(images, transform)
    except ConfigError:  # more than half of the free memory
        return Prepared(images, transform)
