"""A picture of any size as square views: the whole of it, and tiles at a higher resolution."""

from __future__ import annotations

import numpy as np
from PIL import Image

from intarsia.core.checks import at_least

Grid = tuple[int, int]  # rows, columns of the tiles; (0, 0) = none


def grid_of(width: int, height: int, side: int, most: int) -> Grid:
    """Rows and columns of tiles of `side` px, at most `most` of them, for a picture's shape.

    Of all grids the one that keeps the most pixels, then the one that leaves the least empty, as
    LLaVA-NeXT does (anyres). (0, 0) for a picture that one view holds.
    """
    at_least("tiles", most, 0)
    rows_most, columns_most = -(-height // side), -(-width // side)
    best, chosen = (0.0, 0.0), (1, 1)
    for rows in range(1, min(most, rows_most) + 1):
        for columns in range(1, min(most // rows, columns_most) + 1):
            scale = min(columns * side / width, rows * side / height)
            kept = min(width * height * scale * scale, width * height)
            value = (kept, kept - rows * columns * side * side)  # the second: minus what is empty
            if value > best or best == (0.0, 0.0):
                best, chosen = value, (rows, columns)
    return (0, 0) if chosen == (1, 1) else chosen


def views(image: Image.Image, side: int, most: int = 0) -> tuple[np.ndarray, Grid]:
    """The whole picture on a white square, then its tiles, row by row.

    most: tiles, at most.  Returns (1 + rows * columns, side, side, 3) uint8 and (rows, columns).
    """
    rows, columns = grid_of(*image.size, side, most)
    found = [np.asarray(laid(image, side, side))]
    if rows:
        whole = np.asarray(laid(image, columns * side, rows * side))
        cut = whole.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
        found += list(cut.reshape(-1, side, side, 3))
    return np.stack(found), (rows, columns)


def laid(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture as large as it fits, in the middle of a white rectangle."""
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    shrunk = image.convert("RGB").resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    page = Image.new("RGB", (width, height), "white")
    page.paste(shrunk, ((width - size[0]) // 2, (height - size[1]) // 2))
    return page
