"""Image classification sets: pictures with one label each, or with several."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset

from intarsia.core.errors import ConfigError, DataError
from intarsia.core.seeds import mix
from intarsia.data.decode import (
    LazyPictures,
    Picture,
    decoding_allowed,
    digest,
    max_pixels,
    read_image,
    shortened,
    to_rgb,
)
from intarsia.data.digest_cache import DigestCache
from intarsia.data.label_sets import strata
from intarsia.data.packages import announce

OnError = Literal["raise", "skip"]
MANY = 5_000  # from this many pictures on, a line announces the check
SHOWN = 20  # an error lists at most this many paths


@dataclass(frozen=True, eq=False)
class ImageSet(Dataset[tuple[Image.Image, Any]]):
    """Pictures with their labels; a map-style dataset of (RGB Pillow image, int or row of 0 and 1).

    images: a uint8 array (n, H, W) or (n, H, W, 3), or a sequence of Pillow images, arrays, paths
    or encoded bytes, which are decoded on access. labels: (n,) int64, indices into `classes`; or,
    of several labels a picture, (n, classes), 1 where a label applies and 0 elsewhere.
    Raises: DataError when the numbers of labels and images differ, or a label has no class.
    """

    name: str
    images: np.ndarray | Sequence[Picture]
    labels: np.ndarray
    classes: tuple[str, ...]
    licence: str = "not stated"
    source: str = "not stated"
    skipped: tuple[str, ...] = ()  # unreadable pictures that were left out on request
    digests: tuple[str, ...] = ()  # one per picture, filled by `verify`

    def __post_init__(self) -> None:
        """Check that each picture has a label, and each label a class.  Raises: DataError."""
        if len(self.images) != len(self.labels):
            got = f"{len(self.images)} images and {len(self.labels)} labels"
            fix = "Check how the set was put together."
            raise DataError(f"set {self.name!r}", got=got, want="one label per image", fix=fix)
        check_labels(self.labels, self.classes, self.name)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        return self.image(index), self.label(index)

    @property
    def several(self) -> bool:
        """The statement that a picture may have several labels, bool."""
        return self.labels.ndim == 2

    def label(self, index: int) -> Any:
        """Return the class of a picture, or its int64 row of 0 and 1."""
        return self.labels[index].copy() if self.several else int(self.labels[index])

    def image(self, index: int, *, side: int | None = None) -> Image.Image:
        """Decode picture `index` as 8-bit RGB.

        side: px; both sides are at least so long, and a large JPEG may be decoded smaller; None =
        its size.
        Raises: DataError when it cannot be read.
        """
        picture = self.images[index]
        if isinstance(picture, Path):
            return read_image(picture, side=side)
        if isinstance(picture, bytes):
            return read_image(picture, name=f"{self.name}[{index}]", side=side)
        return to_rgb(picture)

    def label_of(self, index: int) -> str:
        """Return the name of picture `index` in messages: its path, or its position in the set."""
        picture = self.images[index]
        return str(picture) if isinstance(picture, Path) else f"{self.name}[{index}]"

    def counts(self) -> dict[str, int]:
        """Count the images of each class, in class order, including zeros."""
        if self.several:
            per_class = self.labels.sum(0)
            return {name: int(n) for name, n in zip(self.classes, per_class, strict=True)}
        per_class = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(n) for name, n in zip(self.classes, per_class, strict=True)}

    def select(self, index: Iterable[int], *, name: str | None = None) -> ImageSet:
        """Return the set of the pictures at some positions, in that order; nothing is decoded.

        index: the positions; name: of the new set, None = the same.
        """
        positions = np.asarray(list(index), dtype=np.int64)
        if isinstance(self.images, np.ndarray):
            images = self.images[positions]
        else:
            # Pictures are not decoded before they are used.
            images = LazyPictures(len(positions), partial(_picture_at, self.images, positions))
        return dataclasses.replace(
            self,
            name=name or self.name,
            images=images,
            labels=self.labels[positions],
            digests=tuple(self.digests[i] for i in positions) if self.digests else (),
        )

    def subset(self, n: int, *, seed: int) -> ImageSet:
        """Draw `n` pictures by `seed`, with the classes in proportion and the order unchanged.

        Every class keeps at least one picture.
        Raises: ConfigError for more images than the set has, or fewer than it has classes.
        """
        if n == len(self):
            return self
        if self.several:
            return self.select(stratified(self.labels, n, seed=seed, classes=self.classes)[0])
        # classes without any picture cannot keep one
        present, counts = np.unique(self.labels, return_counts=True)
        if not len(present) <= n <= len(self):
            want, fix = f"between {len(present)} and {len(self)}", "Ask for another number."
            raise ConfigError(f"images of {self.name!r}", got=n, want=want, fix=fix)
        if n > len(self) - len(present) or counts.min() < 2:  # too few for a stratified split
            return self.select(_positions_of_each(self.labels, n, seed))
        positions, _ = stratified(self.labels, n, seed=seed, classes=self.classes)
        return self.select(positions)


def _picture_at(images: Sequence[Picture], positions: np.ndarray, index: int) -> Picture:
    return images[int(positions[index])]


def verify(images: ImageSet, *, on_error: OnError = "raise", threads: int = 4) -> ImageSet:
    """Decode every picture of a set once; return the set with a digest for each.

    Files that were decoded before and have not changed are not decoded again. on_error: "skip"
    leaves unreadable pictures out and lists them in `skipped`. threads: pictures decoded at a time.
    Raises: DataError listing the unreadable pictures (up to 20), or a class that has none left.
    """

    files = [p for p in images.images if isinstance(p, Path)] if _are_files(images) else []
    # a joined set may mix paths with other pictures
    cache = DigestCache(files) if files and len(files) == len(images) else None

    def decode(index: int) -> str | DataError:
        """Return a picture's digest, from the cache if its file is unchanged, or the error."""
        try:
            cached = cache.get(files[index]) if cache else None
            if cached:
                return cached
            with decoding_allowed(images.images[index]):
                return digest(images.image(index))
        except DataError as error:
            return error

    # Thousands of pictures take a while: announce it.
    if len(images) >= MANY:
        announce(f"intarsia: checking {len(images)} pictures of {images.name!r}")
    with ThreadPoolExecutor(threads) as pool:  # Pillow and hashlib release the GIL
        results = list(pool.map(decode, range(len(images))))
    if cache:
        cache.save({p: r for p, r in zip(files, results, strict=True) if isinstance(r, str)})
    unreadable = [(i, r) for i, r in enumerate(results) if isinstance(r, DataError)]
    if not unreadable:
        digests = tuple(r for r in results if isinstance(r, str))
        return dataclasses.replace(images, digests=digests)
    if on_error == "raise":
        lines = [
            f"\n  {shortened(images.label_of(i))}: {error.got}" for i, error in unreadable[:SHOWN]
        ]
        listing = "".join(lines)
        remainder = f"\n  and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
        subject = f"{len(unreadable)} of {len(images)} pictures of {images.name!r} cannot be read"
        got = listing + remainder + "\n"
        fix = "Replace or delete them, or pass on_error='skip' (left out and recorded)."
        want = f"readable images of at most {max_pixels() / 1e6:.0f} Mpx"
        raise DataError(subject, got=got, want=want, fix=fix)
    unreadable_positions = {i for i, _ in unreadable}
    readable = images.select(i for i in range(len(images)) if i not in unreadable_positions)
    check_every_class(readable)
    return dataclasses.replace(
        readable,
        skipped=images.skipped + tuple(images.label_of(i) for i, _ in unreadable),
        digests=tuple(r for r in results if isinstance(r, str)),
    )


def _are_files(images: ImageSet) -> bool:
    """Decide whether a set's pictures are files, by the first one."""
    return len(images) > 0 and isinstance(images.images[0], Path)


def check_labels(labels: np.ndarray, classes: Sequence[str], name: str) -> None:
    """Raise DataError unless labels are class numbers (n,), or rows of 0 and 1, (n, classes)."""
    # Several labels a picture: a row of 0 and 1.
    rows = labels.ndim == 2 and labels.shape[1] == len(classes)
    if rows and labels.dtype.kind in "iu" and ((labels == 0) | (labels == 1)).all():
        return
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        got, fix = f"{labels.dtype} of shape {labels.shape}", "Give one integer per image."
    elif len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        got = f"labels from {labels.min()} to {labels.max()}"
        fix = "Count classes from 0, and name every class."
    else:
        return
    # one number for each picture
    want = f"integers from 0 to {len(classes) - 1}"
    raise DataError(f"labels of {name!r}", got=got, want=want, fix=fix)


def check_every_class(images: ImageSet) -> None:
    """Raise DataError when a set has fewer than two classes, or a class without a picture."""
    if len(images.classes) < 2:
        got = f"only {', '.join(images.classes) or 'none'}"
        subject, fix = f"classes of {images.name!r}", "Add pictures of a second class."
        raise DataError(subject, got=got, want="at least 2 classes", fix=fix)
    empty = [name for name, n in images.counts().items() if n == 0]
    if empty:
        subject, got = f"classes of {images.name!r}", f"no picture of {', '.join(empty[:SHOWN])}"
        fix = "Add pictures (or ask for a larger part), or remove these classes."
        raise DataError(subject, got=got, want="at least one picture of every class", fix=fix)


def _positions_of_each(labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Draw `n` sorted positions in class proportions, with at least one of each class."""
    # labels: (N,), the class of each picture
    present, counts = np.unique(labels, return_counts=True)
    exact, take = counts * n / len(labels), np.ones(len(present), dtype=np.int64)
    for _ in range(n - len(present)):
        # One picture more for the class that is furthest below its exact share.
        deficit = np.where(take < counts, exact - take, -np.inf)
        take[np.argmax(deficit)] += 1
    generator = np.random.default_rng(seed)
    drawn = [
        generator.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(present, take, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def stratified(
    labels: np.ndarray, n: int, *, seed: int, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Split positions at random into `n` and the rest, both in class proportions and sorted.

    labels: (N,) class numbers, or (N, classes) of 0 and 1: then sets of labels are kept in
    proportion where `strata` can.
    Raises: DataError for a class with a single image; ConfigError when `n` or the rest is smaller
    than the number of classes.
    """
    positions = np.arange(len(labels))
    state = seed if seed < 2**32 else mix(seed) % 2**32  # scikit-learn takes no larger one
    if labels.ndim == 2:
        if not 1 <= n < len(labels):
            got, want = f"{n} of {len(labels)} images", f"between 1 and {len(labels) - 1}"
            raise ConfigError("size of a split", got=got, want=want, fix="Ask for another number.")
        label_sets = strata(labels, n)
        selected, rest = train_test_split(
            positions, train_size=n, random_state=state, stratify=label_sets
        )
        return np.sort(selected), np.sort(rest)
    present, counts = np.unique(labels, return_counts=True)
    # scikit-learn's own error does not name the class.
    single = [str(classes[int(c)]) for c, k in zip(present, counts, strict=True) if k < 2]
    if single:
        got, fix = (
            f"a single image of {', '.join(single[:SHOWN])}",
            "Add images or remove these classes.",
        )
        raise DataError(
            "stratified split", got=got, want="at least 2 images of every class", fix=fix
        )
    smallest, largest = len(present), len(labels) - len(present)
    if not smallest <= n <= largest:
        got = f"{n} of {len(labels)} images, {smallest} classes"
        fix = "Ask for another number, or add images."
        raise ConfigError(
            "size of a split", got=got, want=f"between {smallest} and {largest}", fix=fix
        )
    selected, rest = train_test_split(positions, train_size=n, random_state=state, stratify=labels)
    return np.sort(selected), np.sort(rest)
