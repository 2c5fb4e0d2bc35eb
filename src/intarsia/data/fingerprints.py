"""Records of the data that was used: a hash of pixels and labels, counts, shared pictures."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.data.images import ImageSet, verify


def fingerprint(images: ImageSet) -> dict[str, Any]:
    """Return a JSON-ready record of a set: SHA-256, counts per class, formats, source, skips.

    images: the set. The hash covers decoded RGB pixels, sizes and labels, in order. It changes with
    any pixel or label, but not when files are renamed or saved losslessly in another format.
    """
    # Digests of pixels do not depend on the file format.
    verified = images if images.digests else verify(images)
    total = hashlib.sha256()
    for picture, label in zip(verified.digests, verified.labels, strict=True):
        # Rows of 0 and 1 are written without separators, a class as its number.
        label_text = "".join(map(str, label)) if images.several else label
        total.update(f"{picture}:{label_text}\n".encode())
    return {
        "name": images.name,
        "sha256": total.hexdigest(),
        "n": len(images),
        "counts": images.counts(),
        "formats": _count_formats(images),
        "repeated": len(verified.digests) - len(set(verified.digests)),
        "skipped": list(images.skipped),
        "licence": images.licence,
        "source": images.source,
    }


def _count_formats(images: ImageSet) -> dict[str, int]:
    """Count the pictures of a set by file suffix, type or array shape."""
    if isinstance(images.images, np.ndarray):
        height, width = images.images.shape[1:3]
        return {f"array {width}x{height}": len(images)}
    kinds = (
        p.suffix.lower() if isinstance(p, Path) else type(p).__name__
        for p in (images.images[i] for i in range(len(images)))
    )
    return dict(sorted(Counter(kinds).items()))


def shared(first_set: ImageSet, second_set: ImageSet) -> list[tuple[int, int]]:
    """Return the positions (i, j) of pictures with equal pixels in the first and the second set.

    A test picture that is also a training picture makes the result too good. Only exact copies are
    found, not resized or re-compressed ones.
    """
    first_verified = first_set if first_set.digests else verify(first_set)
    second_verified = second_set if second_set.digests else verify(second_set)
    position = {picture: i for i, picture in enumerate(first_verified.digests)}
    return [(position[p], j) for j, p in enumerate(second_verified.digests) if p in position]
