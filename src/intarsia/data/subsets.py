"""Nested training subsets: a fraction of each class, or k images per class.

one = keep_fraction(images, 0.01, seed=0)          # also in keep_fraction(images, 0.05, seed=0)
four = keep_shots(images, 4, seed=0)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from intarsia.core.checks import above, between, whole
from intarsia.core.errors import ConfigError
from intarsia.data.images import ImageSet


@dataclass(frozen=True, slots=True)
class TrainingSize:
    """Size of a training part as images, a fraction, or shots per class.

    train: images in all.  fraction: of each class.  shots: images of each class.  fewer: a class
    with fewer images than shots keeps all of them.

    Raises: ConfigError for more than one of them, and for `fewer` without shots.
    """

    train: int | None = None
    fraction: float | None = None
    shots: int | None = None
    fewer: bool = False

    def __post_init__(self) -> None:
        """Check that at most one size is given, `fewer` with shots alone.  Raises: ConfigError."""
        settings = self.record()
        if len(set(settings) - {"fewer"}) > 1 or (self.fewer and self.shots is None):
            got = " and ".join(f"{name}={value}" for name, value in settings.items())
            want = "one of train, fraction and shots; fewer with shots only"
            fix = "Leave out the others."
            raise ConfigError("size of the training part", got=got, want=want, fix=fix)

    def __call__(self, images: ImageSet, *, seed: int) -> ImageSet:
        """Return the subset of a training set that has this size, in the set's order."""
        if self.train is not None:
            return images.subset(self.train, seed=seed)
        if self.fraction is not None:
            return keep_fraction(images, self.fraction, seed=seed)
        if self.shots is not None:
            return keep_shots(images, self.shots, seed=seed, fewer=self.fewer)
        return images

    def record(self) -> dict[str, float | bool]:
        """Return the settings that differ from the defaults, ready for JSON."""
        sizes = {"train": self.train, "fraction": self.fraction, "shots": self.shots}
        settings: dict[str, float | bool] = {k: v for k, v in sizes.items() if v is not None}
        return settings | ({"fewer": True} if self.fewer else {})


def keep_fraction(images: ImageSet, fraction: float, *, seed: int) -> ImageSet:
    """Keep max(1, round(fraction * n)) of the n images of each class; of all, with several labels.

    Subsets of one seed are nested. Because each class is rounded and keeps at least one image, the
    total can differ from `fraction`.
    Raises: ConfigError for a fraction outside (0, 1].
    """
    subject, fix = f"fraction of {images.name!r}", "Give 0.1 for 10 %."
    above(subject, fraction, 0, fix)
    between(subject, fraction, 0, 1, fix)
    # int(x + 0.5) rounds halves up, unlike Python's round
    return _keep_per_class(images, lambda n: max(1, int(fraction * n + 0.5)), seed)


def keep_shots(images: ImageSet, shots: int, *, seed: int, fewer: bool = False) -> ImageSet:
    """Keep `shots` images of each class that has any; subsets of one seed are nested.

    fewer: keep all images of a class that has fewer than `shots`.
    Raises: ConfigError for less than one shot, or (unless `fewer`) more than the rarest class has.
    """
    if images.several:
        subject, got = f"shots of {images.name!r}", "several labels a picture"
        fix = "Give a number of training images, or a fraction."
        raise ConfigError(subject, got=got, want="one class for each picture", fix=fix)
    whole(f"shots of {images.name!r}", shots)
    counts = {name: n for name, n in images.counts().items() if n}
    # The class with the fewest images limits the number of shots.
    rarest = min(counts, key=counts.__getitem__, default="")
    if shots < 1 or (not fewer and shots > counts.get(rarest, 0)):
        classes_short = sum(n < shots for n in counts.values())
        fewest = counts.get(rarest, 0)
        raise ConfigError(
            f"images of each class of {images.name!r}",
            got=f"shots={shots}, and {classes_short} of {len(counts)} classes have less"
            f" (fewest: {fewest} of {rarest!r})",
            want=f"from 1 to {fewest}",
            fix="Lower shots, or pass fewer=True." if shots > 0 else "Try 1.",
        )
    return _keep_per_class(images, lambda n: min(n, shots), seed)


def _keep_per_class(images: ImageSet, count_of: Callable[[int], int], seed: int) -> ImageSet:
    """Keep `count_of(n)` of the n images of each class, drawn by a seed, in the original order."""
    positions = []
    # With several labels a picture there are no classes to keep in proportion.
    labels = np.zeros(len(images), np.int64) if images.several else images.labels
    for label in np.unique(labels).tolist():
        of_class = np.flatnonzero(labels == label)
        # Each class has one order for all sizes, which makes subsets nested.
        order = np.random.default_rng((seed, label)).permutation(len(of_class))
        positions.append(of_class[order[: count_of(len(of_class))]])
    return images.select(np.sort(np.concatenate(positions)).tolist() if positions else ())
