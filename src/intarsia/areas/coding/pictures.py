"""Picture of components as grey tiles."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ...core.errors import ShapeError
from ...core.files import write_bytes

SOFTWARE = "intarsia components"  # in the PNG
SIDE = 48  # pixels of a tile, approximately
GAP = 2  # pixels between tiles


def tiles(
    rows: np.ndarray, path: str | Path | None = None, shape: tuple[int, int] | None = None
) -> Image.Image:
    """Draw each row of numbers as a tile, 0 in mid grey, its largest value black or white.

    rows: (n, D); path: a PNG to write, None = none; shape: (height, width) of a tile, a square by
      default. Raises: ShapeError for rows of another size.
    """
    side = math.isqrt(rows.shape[1])
    shape = (side, side) if shape is None else shape
    if shape[0] * shape[1] != rows.shape[1]:
        got = f"{rows.shape[1]} values for tiles of {shape[0]} x {shape[1]}"
        fix = f"Pass shape=(height, width), such as (1, {rows.shape[1]})."
        raise ShapeError("component", got=got, want="height times width values", fix=fix)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    shades = 127.5 * (1 + rows / np.where(largest > 0, largest, 1))
    # enlarge small tiles by whole factors, so that pixels stay sharp
    scale = max(1, SIDE // max(shape))
    columns = math.ceil(math.sqrt(len(rows)))
    high, wide = (length * scale + GAP for length in shape)
    sheet = np.full(
        (math.ceil(len(rows) / columns) * high + GAP, columns * wide + GAP), 40, np.uint8
    )
    for index, row in enumerate(shades.round().astype(np.uint8)):
        top, first_column = index // columns * high + GAP, index % columns * wide + GAP
        tile = row.reshape(shape).repeat(scale, axis=0).repeat(scale, axis=1)
        sheet[top : top + high - GAP, first_column : first_column + wide - GAP] = tile
    picture = Image.fromarray(sheet)
    if path is not None:
        raw = io.BytesIO()
        (metadata := PngInfo()).add_text("Software", SOFTWARE)
        picture.save(raw, "PNG", pnginfo=metadata)
        write_bytes(path, raw.getvalue())
    return picture
