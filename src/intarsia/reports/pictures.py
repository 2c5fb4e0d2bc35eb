"""Pictures as data inside a page, together no larger than a page may be."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

LARGEST = 1_000_000  # bytes of all pictures of a page
QUALITY = 85  # of WebP
FEW_PIXELS = 80  # a smaller picture stays as it is, pixel by pixel
SMALLER = 0.8  # the side of pictures that are too many for a page, over the side before


def embedded_pictures(pictures: Sequence[Image.Image], largest: int = LARGEST) -> list[str]:
    """Return each picture as a data: URL; all are shrunk until they fit into `largest` bytes.

    The longer side never falls below FEW_PIXELS.
    """
    encoded = [_encoded(picture) for picture in pictures]
    factor = 1.0
    # one factor for all, so that their sizes stay comparable
    while sum(map(len, encoded)) > largest and factor > 0.1:
        factor *= SMALLER
        encoded = [_encoded(_shrunk(picture, factor)) for picture in pictures]
    return [f"data:image/webp;base64,{text}" for text in encoded]


def _shrunk(picture: Image.Image, factor: float) -> Image.Image:
    """Return a copy of a picture, smaller by a factor, but not below FEW_PIXELS."""
    side = max(FEW_PIXELS, round(factor * max(picture.size)))
    # `thumbnail` changes a picture in place
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def _encoded(picture: Image.Image) -> str:
    """Return a picture as WebP in base64, without loss if it is tiny."""
    raw = io.BytesIO()
    # a tiny picture is shown enlarged, where losses would be seen
    lossless = max(picture.size) < FEW_PIXELS
    picture.convert("RGB").save(raw, "WEBP", quality=QUALITY, lossless=lossless)
    return base64.b64encode(raw.getvalue()).decode()
