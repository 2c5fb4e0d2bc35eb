"""`intarsia codec`: a signal as a file and back, and the prior that both sides share."""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError, DataError
from ..core.reading import open_regular, read_bytes
from .options import Json
from .shell import note, say, show_json, show_table, warn
from .targets import target

IRC = "IRC"  # where a file of `codec encode` begins
SUFFIXES = {"image": ".png", "audio": ".wav", "video": ".npy", "structure": ".npy"}
PriorFolder = Annotated[
    Path | None,
    typer.Option(help="Folder of `intarsia codec train`; the built-in one of photographs if none."),
]
codec = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Store a signal as a file by a learned prior, and train such priors.",
)
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The file to write.")]


@codec.command()
def encode(
    file: Annotated[Path, typer.Argument(help="A picture, a .wav, or a .npy of frames or points.")],
    out: Out = None,
    prior: PriorFolder = None,
    steps: Annotated[
        int,
        typer.Option(
            min=1,
            help="Of fitting before the first part is coded, and about as many between parts.",
        ),
    ] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    as_json: Json = False,
) -> None:
    """Encode a signal as a file whose length is the prior's rate: half an hour a megapixel.

    The file names the prior by its digest; who decodes needs the same prior.

    Example:  intarsia codec encode photo.png -o photo.irc
    """
    _there(file)
    place = out or file.with_suffix(".irc")
    _no_folder(place)
    target(place, "photo.irc", option="--out", mark=IRC)
    signal, rate = _read(file)
    from ..models.codec.codec import Recombiner

    coder, start = Recombiner.load(prior or _built_in()), time.monotonic()
    # Between two parts the rest of the signal is fitted again, to make up for what the coded part
    # lost.
    between = coder.steps_of(steps) - steps
    note(f"{steps} steps of fitting before the first part, {between} more between the parts.")
    # A codec warns in Python's way; here its warnings become lines on stderr.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = coder.encode(signal, steps=steps, rate=rate, seed=seed)
    for warning in caught:
        warn(str(warning.message))
    _write(place, data)
    points, seconds = _points(data), time.monotonic() - start
    rate_of_file = len(data) * 8 / points
    record = {"file": str(place), "bytes": len(data), "bits_per_point": rate_of_file}
    record |= {
        "steps": steps + between,
        "seconds": seconds,
        "seconds_per_million_points": seconds / points * 1e6,
    }
    if as_json:
        show_json(record | {"prior": coder.prior.digest.hex()})
        return
    say(f"{place}: {len(data):,} bytes, {rate_of_file:.2f} bits for each point.")
    say(_speed(seconds, points))
    say(f"Next:  intarsia codec decode {shlex.quote(str(place))}")


@codec.command()
def decode(
    file: Annotated[Path, typer.Argument(help="A file of `intarsia codec encode`.")],
    out: Out = None,
    prior: PriorFolder = None,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Say what the file is, and decode nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Decode a file of `intarsia codec encode`: a PNG, a .wav, or a .npy.

    Example:  intarsia codec decode photo.irc -o photo.png
    """
    from ..models.codec import irc

    _there(file)
    data = read_bytes(file)
    header, payload = irc.read(data)
    record = dataclasses.asdict(header) | {
        "prior": header.prior.hex(),
        "version": irc.VERSION,
        "bytes": len(data),
        "payload": len(payload),
    }
    if inspect:
        # Fields that this kind of signal does not use are 0 or empty.
        rows = [(name, str(value)) for name, value in record.items() if value not in (0, ())]
        show_json(record) if as_json else show_table("", ("what", "value"), rows)
        return
    place = out or file.with_name(f"{file.stem}.decoded{SUFFIXES[header.kind]}")
    _no_folder(place)
    # PNG and .wav hold one signal each; an array holds any number.
    if header.count > 1 and header.kind != "video" and place.suffix != ".npy":
        place = place.with_suffix(".npy")
        note(f"A pack of {header.count} signals: written as one array, {place}.")
    target(place, "photo.png", option="--out")
    from ..models.codec.codec import Recombiner

    coder, start = Recombiner.load(prior or _built_in()), time.monotonic()
    signal = coder.decode(data)
    seconds = time.monotonic() - start
    _save(place, signal, header.rate)
    if as_json:
        show_json(record | {"out": str(place), "seconds": seconds})
        return
    say(f"{place}: {header.kind} of {' x '.join(map(str, header.sizes))}.")
    say(_speed(seconds, _points(data)))


@codec.command()
def train(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    save: Annotated[Path | None, typer.Option(help="The folder to write.")] = None,
    bits_per_pixel: Annotated[float, typer.Option(help="Of the payload.")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="Of training.")] = 2000,
    crops: Annotated[int, typer.Option(min=1, help="Parts of the pictures.")] = 500,
    tiles: Annotated[int, typer.Option(min=1, help="Patches along each side of a part.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and draws.")] = 0,
) -> None:
    """Train the prior of a codec of pictures; a training that was killed goes on.

    Example:  intarsia codec train photographs/ --bits-per-pixel 0.5 --save my-prior
    """
    save = target(save, "my-prior")
    from ..data.decode import SUFFIXES as PICTURES
    from ..data.decode import to_rgb

    files = [
        path
        for picture in pictures
        for path in (sorted(picture.rglob("*")) if picture.is_dir() else [picture])
        # A file that was named is taken whatever its suffix; of a folder only pictures are.
        if picture.is_file() or path.suffix.lower() in PICTURES
    ]
    if not files:
        got, want = "none", f"files ending in {', '.join(sorted(PICTURES))}"
        raise DataError("pictures", got=got, want=want, fix="Check the path.")
    from ..models.codec.codec import Recombiner

    arrays = [to_rgb(_picture(path)) for path in files]
    # The training's checkpoints, which let a killed one go on; removed when the prior is written.
    state = save.with_name(f".{save.name}.training")
    options: dict[str, Any] = {"crops": crops, "tiles": tiles, "steps": steps, "seed": seed}
    coder = Recombiner.train(
        # A part has tiles x tiles patches: the batch keeps about 256 patches a step.
        arrays,
        bits_per_pixel,
        batch=max(1, 256 // tiles**2),
        out=state,
        **options,
    )
    coder.save(save)
    shutil.rmtree(state, ignore_errors=True)
    say(f"{save}: prior {coder.prior.digest.hex()} of {len(files)} pictures.")
    say(f"Next:  intarsia codec encode photo.png --prior {shlex.quote(str(save))}")


def _built_in() -> Path:
    from ..models.codec.codec import PHOTOGRAPHS

    return PHOTOGRAPHS


def _there(file: Path) -> None:
    try:
        # Opening is the only sure test: it also refuses a pipe, a device, or a file without
        # permission.
        open_regular(file).close()
    except OSError as error:
        fix = "Check the path."
        got = str(error.strerror).lower()
        raise DataError(str(file), got=got, want="a file", fix=fix) from error


def _no_folder(target: Path) -> None:
    """Refuse a folder in place of a file before the work, not after it."""
    if target.is_dir():
        fix = f"Name a file in it: {target / 'photo'}."
        raise ConfigError("--out", got=f"the folder {target}", want="a file", fix=fix)


def _picture(file: Path, want: str = "a whole picture") -> Any:
    """Open a picture, turned as its EXIF says.  Raises: DataError, with `want`."""
    from PIL import Image, ImageOps

    from ..data.decode import open_picture
    from ..models.codec.signals import MOST_POINTS

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


def _read(file: Path) -> tuple[Any, int]:
    """Read a signal and, of audio, its samples a second, else 0.  Raises: DataError."""
    import numpy as np

    suffix = file.suffix.lower()
    try:
        if suffix == ".npy":
            with open_regular(file) as raw:
                return np.lib.format.read_array(raw, allow_pickle=False), 0
        if suffix == ".wav":
            from scipy.io import wavfile

            with open_regular(file) as raw:
                rate, samples = wavfile.read(raw)
            if samples.dtype == np.int16:
                # 16-bit samples as numbers in [-1, 1), as the codec expects.
                samples = samples / 32768
            return (samples.mean(1) if samples.ndim == 2 else samples), int(rate)
    except Exception as error:  # a .npy's header is a literal of Python, and may fail anywhere
        want, fix = f"a whole {suffix} file", "Write it again from its source."
        raise DataError(str(file), got=error, want=want, fix=fix) from error
    return _picture(file, "a whole picture, a .wav, or a .npy of frames or points"), 0


def _save(target: Path, signal: Any, rate: int) -> None:
    """Write a decoded signal in the form of the target's suffix.  Raises: ConfigError."""
    import io

    import numpy as np
    from PIL import Image

    # The file is made in memory first: what is on disk is then whole or not there.
    buffer, suffix = io.BytesIO(), target.suffix.lower()
    if suffix == ".npy":
        np.save(buffer, signal)
    elif suffix == ".wav" and signal.ndim == 1:
        from scipy.io import wavfile

        wavfile.write(buffer, rate or 16_000, np.rint(signal * 32767).astype(np.int16))
    elif suffix in (".png", ".tif", ".tiff", ".bmp") and signal.dtype == np.uint8:
        Image.fromarray(signal).save(buffer, Image.registered_extensions()[suffix])
    else:
        want = ".png, .tif or .bmp for a picture, .wav for audio, .npy for anything"
        raise ConfigError("--out", got=target.name, want=want, fix="Choose another suffix.")
    _write(target, buffer.getvalue())


def _write(target: Path, data: bytes) -> None:
    from ..core.files import write_text

    write_text(target, data)


def _speed(seconds: float, points: int) -> str:
    return f"{seconds:.1f} s, {seconds / points * 1e6:,.1f} s for each million points."


def _points(data: bytes) -> int:
    from ..models.codec import irc

    header, _ = irc.read(data)
    # Pixels, samples or points: the rate is bits for each of them.
    return math.prod(header.sizes) * header.count
