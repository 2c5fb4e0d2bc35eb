"""The files of signals that the codec reads and writes: pictures, .wav and .npy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError
from ..core.files import write_text
from ..core.reading import check_whole_wav, open_regular

SUFFIXES = {"image": ".png", "audio": ".wav", "video": ".npy", "structure": ".npy"}
"""By the kind of a signal."""


def check_signal(file: Path) -> None:
    """Check that there is a file to read.  Raises: DataError."""
    try:
        # Opening is the only sure test: it also refuses a pipe, a device, or a file without
        # permission.
        open_regular(file).close()
    except OSError as error:
        fix = "Check the path."
        got = str(error.strerror).lower()
        raise DataError(str(file), got=got, want="a file", fix=fix) from error


def open_whole(file: Path, want: str = "a whole picture") -> Any:
    """Open a picture, turned as its EXIF data demand.

    file: of the picture; want: what should have been there, for the error.
    Raises: DataError.
    """
    from PIL import Image, ImageOps

    from ..areas.codec.signals import MOST_POINTS
    from ..data.decode import open_picture

    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            picture = open_picture(file)
        with picture:
            # The header gives the size, so a picture too large is refused before it is decoded.
            if picture.width * picture.height > MOST_POINTS:
                got, want = f"{picture.width} x {picture.height} px", f"at most {MOST_POINTS:,} px"
                raise DataError(str(file), got=got, want=want, fix="Cut it into parts.")
            # The pixels are coded as they are seen; the file of `encode` has no EXIF.
            return ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        fix = "Open it in another program, or leave it out."
        raise DataError(str(file), got=error, want=want, fix=fix) from error


def read_signal(file: Path) -> tuple[Any, int]:
    """Read a signal: a picture, a .wav, or a .npy; return it with its samples a second, else 0.

    file: its suffix decides.
    Raises: DataError.
    """
    import numpy as np

    suffix = file.suffix.lower()
    try:
        if suffix == ".npy":
            with open_regular(file) as raw:
                return np.lib.format.read_array(raw, allow_pickle=False), 0
        if suffix == ".wav":
            from scipy.io import wavfile

            with open_regular(file) as raw:
                check_whole_wav(raw)
                rate, samples = wavfile.read(raw)
            if samples.dtype == np.int16:
                # 16-bit samples as numbers in [-1, 1), as the codec expects.
                samples = samples / 32768
            return (samples.mean(1) if samples.ndim == 2 else samples), int(rate)
    except Exception as error:  # a .npy's header is a literal of Python, and may fail anywhere
        want, fix = f"a whole {suffix} file", "Write it again from its source."
        raise DataError(str(file), got=error, want=want, fix=fix) from error
    return open_whole(file, "a whole picture, a .wav, or a .npy of frames or points"), 0


def save_signal(target: Path, signal: Any, rate: int) -> None:
    """Write a decoded signal to a file, in the form of its suffix.

    signal: an array; rate: samples a second of audio.
    Raises: ConfigError for a form that does not fit the signal.
    """
    import io

    import numpy as np
    from PIL import Image

    # The file is made in memory first: the file on disk is then whole or not there.
    buffer, suffix = io.BytesIO(), target.suffix.lower()
    if suffix == ".npy":
        np.save(buffer, signal)
    # 16-bit samples, at 16 kHz where the rate is not known
    elif suffix == ".wav" and signal.ndim == 1:
        from scipy.io import wavfile

        wavfile.write(buffer, rate or 16_000, np.rint(signal * 32767).astype(np.int16))
    elif suffix in (".png", ".tif", ".tiff", ".bmp") and signal.dtype == np.uint8:
        Image.fromarray(signal).save(buffer, Image.registered_extensions()[suffix])
    else:
        want = ".png, .tif or .bmp for a picture, .wav for audio, .npy for anything"
        raise ConfigError("--out", got=target.name, want=want, fix="Choose another suffix.")
    write_text(target, buffer.getvalue())
