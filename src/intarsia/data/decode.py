"""Files and arrays as 8-bit RGB pictures, and sequences of pictures that are read on access."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from intarsia.core.errors import DataError

MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs: 256 MB as RGB
SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif"}
    | {".tiff", ".webp"}
)

Picture = Image.Image | np.ndarray | Path | bytes  # bytes: an encoded file


@dataclass(frozen=True, slots=True)
class LazyPictures(Sequence[Picture]):
    """`size` pictures; picture i is get(i), called on each access."""

    size: int
    get: Callable[[int], Picture]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Picture:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.get(range(self.size)[index])


def read_image(source: Path | bytes, *, name: str | None = None) -> Image.Image:
    """Decode an image file or its bytes completely: the first frame as RGB, upright.

    Raises: DataError naming the file (or `name`) when it is empty, damaged, not an image, or
    larger than `MAX_PIXELS`.
    """
    name = name or (str(source) if isinstance(source, Path) else "encoded image")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"Image size ({image.width}x{image.height})")
            return to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        got = str(error).partition(" exceeds")[0]
        fix = "Shrink it first, e.g. `vipsthumbnail -s 2048 FILE`, which reads in pieces."
        raise DataError(name, got=got, want=f"at most {MAX_PIXELS} pixels", fix=fix) from error
    except DataError as error:
        raise DataError(name, got=error.got, want=error.want, fix=error.fix) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError ...
        is_file = isinstance(source, Path) and source.is_file()
        size = len(source) if isinstance(source, bytes) else is_file and source.stat().st_size
        got = error if size else "an empty or missing file"
        fix = "Replace or delete it, or pass on_error='skip'."
        raise DataError(name, got=got, want="a readable image", fix=fix) from error


def to_rgb(picture: Image.Image | np.ndarray) -> Image.Image:
    """Return any Pillow image or (H, W), (H, W, 1|3|4) array as 8-bit RGB.

    16-bit values are scaled (v / 257), not clipped. Transparent parts become white. EXIF rotation
    is applied.
    Raises: DataError for shapes and number types that are ambiguous as a picture.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    image = ImageOps.exif_transpose(picture)
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_array(np.asarray(image))
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or 0 in array.shape:
        want = "(height, width) or (height, width, 1|3|4)"
        fix = "Move the channels to the last axis."
        raise DataError("image array", got=f"shape {array.shape}", want=want, fix=fix)
    mode = "RGBA" if array.ndim == 3 and array.shape[2] == 4 else None
    image = Image.fromarray(np.ascontiguousarray(_to_uint8(array)))
    return to_rgb(image) if mode else image.convert("RGB")


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    low, high = array.min(), array.max()  # NaN fails both comparisons below
    if np.issubdtype(array.dtype, np.integer) and low >= 0 and high <= 65535:
        return np.round(array.astype(np.float32) / 257).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating) and low >= 0 and high <= 1:
        return np.round(array.astype(np.float32) * 255).astype(np.uint8)
    want = "8-bit, 16-bit without sign, or floats from 0 to 1"
    fix = "Rescale the values before saving the image."
    raise DataError("image values", got=f"{array.dtype} from {low} to {high}", want=want, fix=fix)


def digest(image: Image.Image) -> str:
    """SHA-256 of an RGB image's size and pixels, which does not depend on the file format."""
    head = f"{image.width}x{image.height}:".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()
