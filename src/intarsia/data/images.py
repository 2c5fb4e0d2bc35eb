"""The internal form of an image classification set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset

from intarsia.core.errors import ConfigError, DataError
from intarsia.data.decode import Picture, read_image, to_rgb


@dataclass(frozen=True, eq=False)
class ImageSet(Dataset[tuple[Image.Image, int]]):
    """Pictures with one label each; a map-style dataset of (RGB Pillow image, int).

    `images` is a uint8 array (n, H, W) or (n, H, W, 3), or any sequence of Pillow images, arrays or paths, which are
    then decoded on access. `labels` is (n,) int64 into `classes`.
    Raises: DataError when labels and images do not fit each other.
    """

    name: str
    images: np.ndarray | Sequence[Picture]
    labels: np.ndarray
    classes: tuple[str, ...]
    licence: str = "not stated"
    source: str = "not stated"
    skipped: tuple[str, ...] = ()  # unreadable files left out on request

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise DataError(
                f"set {self.name!r}",
                got=f"{len(self.images)} images and {len(self.labels)} labels",
                want="one label per image",
                fix="Check how the set was put together.",
            )
        check_labels(self.labels, self.classes, self.name)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.image(index), int(self.labels[index])

    def image(self, index: int) -> Image.Image:
        """Picture `index` as 8-bit RGB."""
        picture = self.images[index]
        return read_image(picture) if isinstance(picture, Path) else to_rgb(picture)

    def counts(self) -> dict[str, int]:
        """Images per class, in class order, zeros included."""
        found = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(n) for name, n in zip(self.classes, found, strict=True)}

    def select(self, index: Iterable[int], *, name: str | None = None) -> ImageSet:
        """The set made of the given positions, in that order."""
        where = np.asarray(list(index), dtype=np.int64)
        images = self.images
        chosen = images[where] if isinstance(images, np.ndarray) else [images[i] for i in where]
        labels = self.labels[where]
        return dataclasses.replace(self, name=name or self.name, images=chosen, labels=labels)

    def subset(self, n: int, *, seed: int) -> ImageSet:
        """`n` images, classes in their original proportions, chosen by `seed`, in original order."""
        if n == len(self):
            return self
        chosen, _ = stratified(self.labels, n, seed=seed, classes=self.classes)
        return self.select(chosen)


def check_labels(labels: np.ndarray, classes: Sequence[str], name: str) -> None:
    """Raise DataError unless `labels` is (n,) integers in [0, len(classes))."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        got, fix = f"{labels.dtype} of shape {labels.shape}", "Give one whole number per image."
    elif len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        got = f"labels from {labels.min()} to {labels.max()}"
        fix = "Count classes from 0, and name every class."
    else:
        return
    want = f"whole numbers from 0 to {len(classes) - 1}"
    raise DataError(f"labels of {name!r}", got=got, want=want, fix=fix)


def stratified(
    labels: np.ndarray, n: int, *, seed: int, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into `n` chosen and the rest, in class proportions; both sorted.

    Raises: ConfigError when `n` does not leave at least one image per class on both sides.
    """
    present, counts = np.unique(labels, return_counts=True)
    lonely = [classes[c] for c, k in zip(present, counts, strict=True) if k < 2]
    if lonely:
        raise DataError(
            "stratified split",
            got=f"a single image of {', '.join(lonely[:20])}",
            want="at least 2 images of every class",
            fix="Add images or remove these classes.",
        )
    if not len(present) <= n <= len(labels) - len(present):
        raise ConfigError(
            "size of the split",
            got=n,
            want=f"between {len(present)} and {len(labels) - len(present)} "
            f"({len(labels)} images, {len(present)} classes)",
            fix="Ask for fewer images, or add some.",
        )
    where = np.arange(len(labels))
    chosen, rest = train_test_split(where, train_size=n, random_state=seed, stratify=labels)
    return np.sort(chosen), np.sort(rest)
