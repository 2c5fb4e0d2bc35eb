"""Components as tiles, in one grey picture."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ...core.errors import ShapeError
from ...core.files import write_text

SOFTWARE = "intarsia components"  # in the PNG
SIDE = 48  # px of a tile, about
GAP = 2


def tiles(
    rows: np.ndarray, path: str | Path | None = None, shape: tuple[int, int] | None = None
) -> Image.Image:
    """Each row as a tile, 0 in mid grey, its largest value black or white.  (n, D) -> a picture.

    shape: (height, width) of a tile; a square if not given.
    Raises: ShapeError for rows that are no such tiles.
    """
    side = math.isqrt(rows.shape[1])
    shape = (side, side) if shape is None else shape
    if shape[0] * shape[1] != rows.shape[1]:
        got = f"{rows.shape[1]} values for tiles of {shape[0]} x {shape[1]}"
        fix = f"Pass shape=(height, width), such as (1, {rows.shape[1]})."
        raise ShapeError("component", got=got, want="height times width values", fix=fix)
    most = np.abs(rows).max(axis=1, keepdims=True)
    shades = 127.5 * (1 + rows / np.where(most > 0, most, 1))
    scale = max(1, SIDE // max(shape))
    many = math.ceil(math.sqrt(len(rows)))
    high, wide = (length * scale + GAP for length in shape)
    sheet = np.full((math.ceil(len(rows) / many) * high + GAP, many * wide + GAP), 40, np.uint8)
    for index, row in enumerate(shades.round().astype(np.uint8)):
        top, left = index // many * high + GAP, index % many * wide + GAP
        tile = row.reshape(shape).repeat(scale, axis=0).repeat(scale, axis=1)
        sheet[top : top + high - GAP, left : left + wide - GAP] = tile
    picture = Image.fromarray(sheet)
    if path is not None:
        raw = io.BytesIO()
        (about := PngInfo()).add_text("Software", SOFTWARE)
        picture.save(raw, "PNG", pnginfo=about)
        write_text(path, raw.getvalue())
    return picture
