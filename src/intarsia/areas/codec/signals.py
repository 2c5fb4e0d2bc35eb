"""Conversion of signals to values in [0, 1] on a grid of patches, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ...core.errors import DataError
from .recombiner import DIMENSIONS, RecombinerSettings

Array = np.ndarray[Any, Any]
MOST_POINTS = 1 << 26  # of a signal: hours of encoding
ALPHA = {"RGBA", "RGBa", "LA", "La", "PA"}  # Pillow's modes with an alpha channel
ANGSTROMS = 200.0  # width of the cube that is mapped to [0, 1] for a structure's points
FORMS = {
    "image": "8-bit RGB: uint8 (H, W, 3), or a picture of Pillow",
    "audio": "float samples in -1 ... 1: (T,)",
    "video": "8-bit RGB frames: uint8 (T, H, W, 3)",
    "structure": "points of a chain in angstroms: float (n, 3)",
}


@dataclass(frozen=True)
class Signal:
    """Signal as values (*sizes, channels) float64 in [0, 1].  centre: a structure's, angstroms."""

    values: Array
    centre: tuple[float, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.values.shape[:-1]


def check_signal(signal: Any, kind: str) -> Array:
    """Check a signal of a kind, and return it as an array of the form in FORMS.

    kind: "image", "audio", "video" or "structure".
    Raises: DataError for another form, an empty one, one with NaN, and one that is too large.
    """
    array, axes = (
        _picture_array(signal) if kind == "image" else np.asarray(signal),
        DIMENSIONS[kind],
    )
    if array.ndim < axes or array.shape[axes:] != (() if kind == "audio" else (3,)):
        raise _refusal(kind, f"shape {array.shape}")
    points = math.prod(array.shape[:axes])
    if not points:
        raise _refusal(kind, f"nothing: shape {array.shape}", fix="Leave it out.")
    if points > MOST_POINTS:
        got, fix = f"{points:,} points", f"Cut it into parts of at most {MOST_POINTS:,} points."
        raise _refusal(kind, got, fix=fix)
    # sound and structures are numbers, pictures and films bytes
    if array.dtype.kind != "f" if kind in ("audio", "structure") else array.dtype != np.uint8:
        raise _refusal(kind, f"values of type {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _refusal(kind, "values that are not finite", fix="Fill them before.")
    if kind == "audio" and np.abs(array).max() > 1:
        raise _refusal(kind, f"samples up to {np.abs(array).max():g}", fix="Scale it down.")
    return array


def read(signal: Any, kind: str) -> Signal:
    """Convert a signal to values in [0, 1].

    signal: of the form in FORMS; kind: "image", "audio", "video" or "structure".  Raises: DataError
      as `check_signal` does.
    """
    values = check_signal(signal, kind).astype(np.float64)
    if kind == "audio":
        return Signal((values[:, None] + 1) / 2)
    if kind == "structure":
        # rounded to float32, as the file stores the centre
        centre = values.mean(0).astype(np.float32).astype(np.float64)
        return Signal((values - centre) / ANGSTROMS + 0.5, tuple(centre.tolist()))
    return Signal(values / 255)


def write(values: Array, kind: str, centre: Sequence[float] = ()) -> Array:
    """Convert values back to a signal, the inverse of `read`; values may lie outside [0, 1].

    values: (*sizes, channels); kind: "image", "audio", "video" or "structure"; centre: of a
      structure, in angstroms.
    """
    if kind == "structure":
        return (values - 0.5) * ANGSTROMS + np.asarray(centre)
    values = values.clip(0, 1)
    if kind == "audio":
        return values[:, 0] * 2 - 1
    return np.rint(values * 255).astype(np.uint8)


def tiles_of(sizes: Sequence[int], settings: RecombinerSettings) -> tuple[int, ...]:
    """Return the number of patches along each axis; the last one may be partly outside."""
    return tuple(-(-size // side) for size, side in zip(sizes, settings.patch, strict=True))


def patches(values: Array, settings: RecombinerSettings) -> tuple[Array, Array]:
    """Cut values into patches, and mark the points inside the signal by 1.

    values: (*sizes, channels).  -> (patches, points, channels), (patches, points). Points outside
      the signal repeat the values at its edge.
    """
    tiles = tiles_of(values.shape[:-1], settings)
    pairs = zip(tiles, settings.patch, values.shape, strict=False)
    over = [(0, count * side - size) for count, side, size in pairs]
    inside = np.pad(np.ones((*values.shape[:-1], 1)), [*over, (0, 0)])
    filled = np.pad(values, [*over, (0, 0)], mode="edge")
    return _split_patches(filled, tiles, settings), _split_patches(inside, tiles, settings)[..., 0]


def join_patches(patches: Array, sizes: Sequence[int], settings: RecombinerSettings) -> Array:
    """Join patches to a signal of some size, the inverse of `patches`."""
    tiles, n = tiles_of(sizes, settings), len(sizes)
    signal = patches.reshape(*tiles, *settings.patch, -1)
    # (tile 1, tile 2, ..., side 1, side 2, ...) -> (tile 1, side 1, tile 2, side 2, ...)
    order = [axis for i in range(n) for axis in (i, n + i)]
    full = [count * side for count, side in zip(tiles, settings.patch, strict=True)]
    signal = signal.transpose(*order, 2 * n).reshape(*full, -1)
    return signal[tuple(slice(size) for size in sizes)]


def _split_patches(values: Array, tiles: Sequence[int], settings: RecombinerSettings) -> Array:
    """Reshape values (*sizes, channels), of whole patches, to (patches, points, channels)."""
    n = len(tiles)
    pairs = [size for pair in zip(tiles, settings.patch, strict=True) for size in pair]
    # Axes: all patch numbers first, then the places within a patch.
    order = [*range(0, 2 * n, 2), *range(1, 2 * n, 2)]
    cells = values.reshape(*pairs, -1).transpose(*order, 2 * n)
    return cells.reshape(math.prod(tiles), settings.points, -1)


def crops(
    arrays: Sequence[Array], sizes: Sequence[int], count: int, random: np.random.Generator
) -> list[Array]:
    """Cut parts of one size at random places, equally many from each array.

    arrays: (*sizes, channels) each.
    Raises: DataError for an array that is smaller.
    """
    parts = []
    for i in range(count):
        array = arrays[i % len(arrays)]
        # numbers of places at which a part can begin along each axis, less 1
        room = [size - side for size, side in zip(array.shape, sizes, strict=False)]
        if min(room) < 0:
            name, want = f"signal {i % len(arrays)}", f"at least {tuple(sizes)}"
            fix = "Leave it out, or train with a smaller patch or fewer tiles."
            raise DataError(name, got=f"size {array.shape[: len(room)]}", want=want, fix=fix)
        start = [int(random.integers(0, over + 1)) for over in room]
        parts.append(array[tuple(slice(a, a + b) for a, b in zip(start, sizes, strict=True))])
    return parts


def _picture_array(signal: Any) -> Array:
    """Convert a picture to (H, W, 3) without loss."""
    if isinstance(signal, Image.Image):
        if signal.mode not in ("RGB", "L") or "transparency" in signal.info:
            fix = "Convert it first: picture.convert('RGB')."
            if signal.mode == "F" or signal.mode.startswith("I"):
                fix = "Scale its values to 8 bits first; the codec has no others."
            elif signal.mode in ALPHA or "transparency" in signal.info:
                fix = "Lay it on a background first: picture.convert('RGB') leaves alpha out."
            raise _refusal("image", f"mode {signal.mode}", fix=fix)
        signal = signal.convert("RGB")
    array = np.asarray(signal)
    # a grey picture gets three equal channels
    return np.repeat(array[..., None], 3, -1) if array.ndim == 2 else array


def _refusal(kind: str, got: str, fix: str = "Convert it first.") -> DataError:
    return DataError(kind, got=got, want=FORMS[kind], fix=fix)
