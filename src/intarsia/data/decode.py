"""Files and arrays as 8-bit RGB pictures, and sequences of pictures that are read on access."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import ExifTags, Image, ImageOps

from intarsia.core.checks import from_environment
from intarsia.core.errors import DataError
from intarsia.core.reading import open_regular

MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs: 256 MB as RGB
LIMIT = "INTARSIA_MAX_PIXELS"  # the environment variable of another limit
AT_ONCE = 50_000_000  # pixels that are decoded side by side, unless one picture alone has more
BYTES = 12  # of a pixel while it is decoded: as in the file, as RGB, and a mask
STRIP = 1 << 22  # pixels that are laid on white, or hashed, at a time
LONGEST = 300  # characters of a file's name in an error
# what Pillow may open: others start programs (EPS), or are no pictures of a camera
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "PPM", "TIFF", "AVIF")
SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif"}
    | {".tiff", ".webp"}
)

Picture = Image.Image | np.ndarray | Path | bytes  # bytes: an encoded file


@dataclass(frozen=True, slots=True)
class LazyPictures(Sequence[Picture]):
    """Sequence of `size` pictures; picture i is get(i), called on each access."""

    size: int
    get: Callable[[int], Picture]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Picture:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.get(range(self.size)[index])


def max_pixels() -> int:
    """Return the largest picture that is read: `MAX_PIXELS`, or INTARSIA_MAX_PIXELS.

    Raises: ConfigError for a value that is no number from 1 on.
    """
    return from_environment(LIMIT, MAX_PIXELS, "a number of pixels")


def open_picture(source: Path | bytes) -> Image.Image:
    """Open a picture of one of `FORMATS` without decoding it.

    Raises: OSError for a source that is no file; what Pillow raises.
    """
    if isinstance(source, Path):
        with open_regular(source):  # Pillow opens it again, and names it in its errors
            pass
    if (limit := max_pixels()) > MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = max(limit, Image.MAX_IMAGE_PIXELS or limit)  # warns from here on
    # formats of plugins are registered here
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # AVIF is not in every Pillow
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)


def read_image(
    source: Path | bytes, *, name: str | None = None, side: int | None = None
) -> Image.Image:
    """Decode an image file or its bytes completely: the first frame as RGB, upright.

    name: for errors, None = the path. side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size,
    with both sides at least this long.
    Raises: DataError when it is empty, damaged, not an image, larger than `max_pixels`, or too
    large for the free memory.
    """
    name = name or (str(source) if isinstance(source, Path) else "encoded image")
    limit = max_pixels()
    try:
        with open_picture(source) as image:
            if side is not None:
                # A JPEG can be decoded at a fraction of its size, which is several times faster.
                image.draft(None, (side, side))
            if image.width * image.height > limit:
                raise Image.DecompressionBombError(f"Image size ({image.width}x{image.height})")
            # Checked by the header, before anything is decoded.
            _check_memory(image, name)
            return to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        got = str(error).partition(" exceeds")[0]
        fix = "Shrink it first, e.g. `vipsthumbnail -s 2048 FILE`, or allow more (--max-pixels)."
        raise DataError(name, got=got, want=f"at most {limit} pixels", fix=fix) from error
    except DataError as error:
        raise DataError(name, got=error.got, want=error.want, fix=error.fix) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError ...
        raise DataError(
            shortened(name),
            got=_why_unreadable(source, error),
            want="a readable image",
            fix="Replace or delete it, or pass on_error='skip'.",
        ) from error


def shortened(name: str) -> str:
    """Shorten a file's name for an error to its end."""
    return name if len(name) <= LONGEST else f"...{name[-LONGEST:]}"


def _why_unreadable(source: Path | bytes, error: Exception) -> object:
    """Return why a picture was not read: the decoder's error, or that there was nothing to read."""
    try:
        empty = not (source.lstat().st_size if isinstance(source, Path) else source)
    except FileNotFoundError:
        return "an empty or missing file"
    except (OSError, ValueError) as path_error:  # a name that is too long, or holds a zero byte
        return getattr(path_error, "strerror", None) or str(path_error)
    regular = isinstance(source, bytes) or os.path.isfile(source)
    return "an empty or missing file" if empty and regular else error


def _check_memory(image: Image.Image, name: str) -> None:
    """Refuse a picture that does not fit into the free memory when decoded."""
    needed = image.width * image.height * BYTES
    if needed > STRIP * BYTES and needed > (free := psutil.virtual_memory().available):
        got = f"{image.width}x{image.height} px, {needed / 1e9:.1f} GB while it is decoded"
        fix = "Shrink it first, or free memory."
        raise DataError(name, got=got, want=f"at most the free {free / 1e9:.1f} GB", fix=fix)


class _PixelBudget:
    """A limit of pixels that are decoded at one time in this process; others wait."""

    def __init__(self) -> None:
        self.used, self.changed = 0, threading.Condition()

    @contextlib.contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Reserve so many pixels inside the `with` block; wait until they are free."""
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + pixels <= AT_ONCE)
            self.used += pixels
        try:
            yield
        finally:
            with self.changed:
                self.used -= pixels
                self.changed.notify_all()


_DECODING = _PixelBudget()


@contextlib.contextmanager
def decoding_allowed(picture: Picture) -> Iterator[None]:
    """Wait until there is room to decode a picture, and reserve its pixels inside the block.

    picture: a file or its bytes; other pictures need no decoding. At one time `AT_ONCE` pixels are
    decoded, or one picture that has more.
    """
    pixels = 0
    if isinstance(picture, Path | bytes):
        # a picture that cannot be opened needs no pixels; `read_image` raises its error later
        with contextlib.suppress(Exception), open_picture(picture) as image:
            pixels = image.width * image.height
    with _DECODING.of(pixels):
        yield


def to_rgb(picture: Image.Image | np.ndarray) -> Image.Image:
    """Return any Pillow image, or array (H, W) or (H, W, 1|3|4), as an 8-bit RGB picture.

    16-bit values are scaled (v / 257), not clipped. Transparent parts become white. EXIF rotation
    is applied.
    Raises: DataError for shapes and number types that are ambiguous as a picture.
    """
    if isinstance(picture, np.ndarray):
        return _array_to_rgb(picture)
    image = picture
    picture.load()  # a PNG may say at its end how it is turned
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(picture)
    if image.mode == "F" or image.mode.startswith("I"):
        return _array_to_rgb(np.asarray(image))
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        return _flatten_on_white(image)
    return image.convert("RGB")


def _flatten_on_white(image: Image.Image) -> Image.Image:
    """Return a transparent image on a white page, made in strips of rows."""
    page = Image.new("RGB", image.size)
    for strip, place in _strips(image):
        layer = strip.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        page.paste(Image.alpha_composite(white, layer).convert("RGB"), place)
    return page


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, tuple[int, int]]]:
    """Yield strips of rows from top to bottom, and where each begins."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(image.height, top + rows))), (0, top)


def _array_to_rgb(array: np.ndarray) -> Image.Image:
    """Convert an array (H, W) or (H, W, 1|3|4) to an RGB image.  Raises: DataError."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or 0 in array.shape:
        want = "(height, width) or (height, width, 1|3|4)"
        fix = "Move the channels to the last axis."
        raise DataError("image array", got=f"shape {array.shape}", want=want, fix=fix)
    # four channels: the last one is transparency
    mode = "RGBA" if array.ndim == 3 and array.shape[2] == 4 else None
    image = Image.fromarray(np.ascontiguousarray(_to_uint8(array)))
    return to_rgb(image) if mode else image.convert("RGB")


def _to_uint8(array: np.ndarray) -> np.ndarray:
    """Scale the values of an array to 0 ... 255, as uint8."""
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
    """Hash an RGB image's size and pixels, whatever its file format (SHA-256)."""
    # The size is hashed, too: a strip of 2x8 px has the bytes of one of 4x4.
    total = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    for strip, _ in _strips(image):
        total.update(strip.tobytes())
    return total.hexdigest()
