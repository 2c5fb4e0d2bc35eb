"""A picture of any size as square views: the whole of it, and tiles at a higher resolution."""

from __future__ import annotations

import numpy as np
from PIL import Image

from intarsia.core.checks import at_least

Grid = tuple[int, int]  # rows, columns of the tiles; (0, 0) = none


def grid_of(width: int, height: int, side: int, limit: int) -> Grid:
    """Choose into how many rows and columns of tiles a picture is cut.

    side: of a tile; all in px. limit: the most tiles. Of all grids the one that keeps the most
    pixels, then the one that leaves the least empty, as LLaVA-NeXT does (anyres). (0, 0) for a
    picture that one tile holds.
    """
    at_least("tiles", limit, 0)
    rows_most, columns_most = -(-height // side), -(-width // side)
    best_value, best_grid = (0.0, 0.0), (1, 1)
    for rows in range(1, min(limit, rows_most) + 1):
        for columns in range(1, min(limit // rows, columns_most) + 1):
            # The picture is scaled to fit the grid, never enlarged in what counts as pixels.
            scale = min(columns * side / width, rows * side / height)
            pixels_kept = min(width * height * scale * scale, width * height)
            value = (
                pixels_kept,
                pixels_kept - rows * columns * side * side,
            )  # the second: minus the empty pixels
            if value > best_value or best_value == (0.0, 0.0):
                best_value, best_grid = value, (rows, columns)
    return (0, 0) if best_grid == (1, 1) else best_grid


def views(image: Image.Image, side: int, limit: int = 0) -> tuple[np.ndarray, Grid]:
    """Return a picture as square views: the whole of it on white, then its tiles, row by row.

    Returns (1 + rows * columns, side, side, 3) uint8 and (rows, columns).
    """
    rows, columns = grid_of(*image.size, side, limit)
    all_views = [np.asarray(place_on_white(image, side, side))]
    if rows:
        page = np.asarray(place_on_white(image, columns * side, rows * side))
        tiles = page.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
        all_views += list(tiles.reshape(-1, side, side, 3))
    return np.stack(all_views), (rows, columns)


def place_on_white(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return a picture, as large as it fits, in the middle of a white page of width x height px."""
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    shrunk = image.convert("RGB").resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    page = Image.new("RGB", (width, height), "white")
    page.paste(shrunk, ((width - size[0]) // 2, (height - size[1]) // 2))
    return page
