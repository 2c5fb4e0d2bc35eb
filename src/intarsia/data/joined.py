"""Several sets of pictures as one, decoded when they are needed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

import numpy as np

from .decode import LazyPictures, Picture
from .images import ImageSet


def chained(first: ImageSet, second: ImageSet) -> ImageSet:
    """Join two parts of one task into one set."""
    images = in_sequence([first.images, second.images])
    labels = np.concatenate([first.labels, second.labels])
    return replace(first, images=images, labels=labels, digests=())


def in_sequence(parts: Sequence[Sequence[Picture] | np.ndarray]) -> LazyPictures:
    """Join the pictures of all parts, one part after the other, without decoding them."""
    # starts[i] is the first index of part i; the last entry is the total.
    starts = list(accumulate(map(len, parts), initial=0))
    return LazyPictures(starts[-1], partial(_picture_of_parts, parts, starts))


def _picture_of_parts(
    parts: Sequence[Sequence[Picture] | np.ndarray], starts: Sequence[int], index: int
) -> Picture:
    part = bisect_right(starts, index) - 1
    return parts[part][index - starts[part]]
