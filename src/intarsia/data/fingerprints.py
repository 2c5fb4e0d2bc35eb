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

    The hash covers decoded RGB pixels, sizes and labels, in order. It changes with any pixel or
    label, but not when files are renamed or saved losslessly in another format.
    """
    known = images if images.digests else verify(images)
    total = hashlib.sha256()
    for picture, label in zip(known.digests, known.labels, strict=True):
        words = "".join(map(str, label)) if images.several else label
        total.update(f"{picture}:{words}\n".encode())
    return {
        "name": images.name,
        "sha256": total.hexdigest(),
        "n": len(images),
        "counts": images.counts(),
        "formats": _formats(images),
        "repeated": len(known.digests) - len(set(known.digests)),
        "skipped": list(images.skipped),
        "licence": images.licence,
        "source": images.source,
    }


def _formats(images: ImageSet) -> dict[str, int]:
    if isinstance(images.images, np.ndarray):
        height, width = images.images.shape[1:3]
        return {f"array {width}x{height}": len(images)}
    kinds = (
        p.suffix.lower() if isinstance(p, Path) else type(p).__name__
        for p in (images.images[i] for i in range(len(images)))
    )
    return dict(sorted(Counter(kinds).items()))


def shared(one: ImageSet, two: ImageSet) -> list[tuple[int, int]]:
    """Positions (i, j) of pictures with equal pixels in both sets.

    A test picture that is also a training picture makes the result too good. Only exact copies are
    found, not resized or re-compressed ones.
    """
    first = one if one.digests else verify(one)
    second = two if two.digests else verify(two)
    where = {picture: i for i, picture in enumerate(first.digests)}
    return [(where[p], j) for j, p in enumerate(second.digests) if p in where]
