"""The internal form of an image classification set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset

from intarsia.core.errors import ConfigError, DataError
from intarsia.data.decode import Picture, digest, read_image, to_rgb
from intarsia.data.packages import announce
from intarsia.data.remembered import Remembered

OnError = Literal["raise", "skip"]
MANY = 5_000  # pictures from which on a line says that they are being checked
SHOWN = 20  # so many paths are listed in one error


@dataclass(frozen=True, eq=False)
class ImageSet(Dataset[tuple[Image.Image, int]]):
    """Pictures with one label each; a map-style dataset of (RGB Pillow image, int).

    `images` is a uint8 array (n, H, W) or (n, H, W, 3), or any sequence of Pillow images, arrays,
    paths or encoded bytes, which are then decoded on access. `labels` is (n,) int64 into `classes`.
    Raises: DataError when labels and images do not fit each other.
    """

    name: str
    images: np.ndarray | Sequence[Picture]
    labels: np.ndarray
    classes: tuple[str, ...]
    licence: str = "not stated"
    source: str = "not stated"
    skipped: tuple[str, ...] = ()  # unreadable pictures left out on request
    digests: tuple[str, ...] = ()  # one per picture once `verify` has decoded them all

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
        """Picture `index` as 8-bit RGB; DataError when it cannot be read."""
        picture = self.images[index]
        if isinstance(picture, Path):
            return read_image(picture)
        if isinstance(picture, bytes):
            return read_image(picture, name=f"{self.name}[{index}]")
        return to_rgb(picture)

    def label_of(self, index: int) -> str:
        """How picture `index` is called in messages: its path, or its place in the set."""
        picture = self.images[index]
        return str(picture) if isinstance(picture, Path) else f"{self.name}[{index}]"

    def counts(self) -> dict[str, int]:
        """Images per class, in class order, zeros included."""
        found = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(n) for name, n in zip(self.classes, found, strict=True)}

    def select(self, index: Iterable[int], *, name: str | None = None) -> ImageSet:
        """The set made of the given positions, in that order."""
        where = np.asarray(list(index), dtype=np.int64)
        images = self.images
        return dataclasses.replace(
            self,
            name=name or self.name,
            images=images[where] if isinstance(images, np.ndarray) else _Selected(images, where),
            labels=self.labels[where],
            digests=tuple(self.digests[i] for i in where) if self.digests else (),
        )

    def subset(self, n: int, *, seed: int) -> ImageSet:
        """`n` images in the original class proportions and order, chosen by `seed`.

        Of each class at least one, so that a class with a single image keeps it.
        Raises: ConfigError for more images than there are, or fewer than classes.
        """
        if n == len(self):
            return self
        present, counts = np.unique(self.labels, return_counts=True)
        if not len(present) <= n <= len(self):
            want, fix = f"between {len(present)} and {len(self)}", "Ask for another number."
            raise ConfigError(f"images of {self.name!r}", got=n, want=want, fix=fix)
        if n > len(self) - len(present) or counts.min() < 2:  # too few for a split in two
            return self.select(_of_each(self.labels, n, seed))
        chosen, _ = stratified(self.labels, n, seed=seed, classes=self.classes)
        return self.select(chosen)


@dataclass(frozen=True, slots=True)
class _Selected(Sequence[Picture]):
    """Some positions of a sequence of pictures, none of them decoded before it is asked for."""

    images: Sequence[Picture]
    where: np.ndarray

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: int) -> Picture:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.images[int(self.where[index])]


def verify(images: ImageSet, *, on_error: OnError = "raise", threads: int = 4) -> ImageSet:
    """Decode every picture once; return the set with `digests`, and `skipped` when asked to skip.

    Files that were decoded before and have not changed since are not decoded again.
    Raises: DataError listing all unreadable pictures (up to 20), or naming a class that is left
    without any.
    """

    files = [p for p in images.images if isinstance(p, Path)] if _of_files(images) else []
    # pictures of joined sets may be paths in part
    memory = Remembered(files) if files and len(files) == len(images) else None

    def decode(index: int) -> str | DataError:
        try:
            known = memory.get(files[index]) if memory else None
            return known or digest(images.image(index))
        except DataError as error:
            return error

    if len(images) >= MANY:
        announce(f"intarsia: checking {len(images)} pictures of {images.name!r}")
    with ThreadPoolExecutor(threads) as pool:  # Pillow and hashlib release the GIL
        results = list(pool.map(decode, range(len(images))))
    if memory:
        memory.save({p: r for p, r in zip(files, results, strict=True) if isinstance(r, str)})
    bad = [(i, r) for i, r in enumerate(results) if isinstance(r, DataError)]
    if not bad:
        digests = tuple(r for r in results if isinstance(r, str))
        return dataclasses.replace(images, digests=digests)
    if on_error == "raise":
        shown = "".join(f"\n  {images.label_of(i)}: {error.got}" for i, error in bad[:SHOWN])
        more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise DataError(
            f"{len(bad)} of {len(images)} pictures of {images.name!r} cannot be read",
            got=shown + more + "\n",
            want="readable images of at most 89 Mpx",
            fix="Replace or delete them, or pass on_error='skip' (left out and recorded).",
        )
    left_out = {i for i, _ in bad}
    kept = images.select(i for i in range(len(images)) if i not in left_out)
    check_every_class(kept)
    return dataclasses.replace(
        kept,
        skipped=images.skipped + tuple(images.label_of(i) for i, _ in bad),
        digests=tuple(r for r in results if isinstance(r, str)),
    )


def _of_files(images: ImageSet) -> bool:
    return len(images) > 0 and isinstance(images.images[0], Path)


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


def check_every_class(images: ImageSet) -> None:
    """Raise DataError when there are fewer than two classes, or one of them has no picture."""
    if len(images.classes) < 2:
        raise DataError(
            f"classes of {images.name!r}",
            got=f"only {', '.join(images.classes) or 'none'}",
            want="at least 2 classes",
            fix="Add pictures of something else: there is nothing to tell apart.",
        )
    empty = [name for name, n in images.counts().items() if n == 0]
    if empty:
        raise DataError(
            f"classes of {images.name!r}",
            got=f"no picture of {', '.join(empty[:SHOWN])}",
            want="at least one picture of every class",
            fix="Add pictures (or ask for a larger part), or remove these classes.",
        )


def _of_each(labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """`n` sorted positions, as nearly in class proportions as one of each class allows."""
    present, counts = np.unique(labels, return_counts=True)
    wanted, take = counts * n / len(labels), np.ones(len(present), dtype=np.int64)
    for _ in range(n - len(present)):
        short = np.where(take < counts, wanted - take, -np.inf)
        take[np.argmax(short)] += 1
    generator = np.random.default_rng(seed)
    drawn = [
        generator.permutation(np.flatnonzero(labels == label))[:few]
        for label, few in zip(present, take, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def stratified(
    labels: np.ndarray, n: int, *, seed: int, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into `n` chosen and the rest, in class proportions; both sorted.

    Raises: DataError for a class with a single image; ConfigError when `n` or the rest is below the
    class count.
    """
    present, counts = np.unique(labels, return_counts=True)
    lonely = [str(classes[int(c)]) for c, k in zip(present, counts, strict=True) if k < 2]
    if lonely:
        raise DataError(
            "stratified split",
            got=f"a single image of {', '.join(lonely[:SHOWN])}",
            want="at least 2 images of every class",
            fix="Add images or remove these classes.",
        )
    if not len(present) <= n <= len(labels) - len(present):
        size = f"{len(labels)} images, {len(present)} classes"
        raise ConfigError(
            "size of a split",
            got=f"{n} of {size}",
            want=f"between {len(present)} and {len(labels) - len(present)}",
            fix="Ask for another number, or add images.",
        )
    where = np.arange(len(labels))
    chosen, rest = train_test_split(where, train_size=n, random_state=seed, stratify=labels)
    return np.sort(chosen), np.sort(rest)
