"""`intarsia codec`: a signal as a file and back, and the prior that both sides share."""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigError, DataError
from ..core.files import write_bytes
from ..core.reading import check_whole_wav, open_regular, read_bytes
from ..core.schema import setting
from .declared import option, with_options
from .options import Json, OutFolder, Seed, Threads, use_threads, writes
from .shell import note, say, show_json, show_table, warn
from .targets import finished_names, target

SUFFIXES = {"image": ".png", "audio": ".wav", "video": ".npy", "structure": ".npy"}
"""By the kind of a signal."""
IRC = "IRC"  # where a file of `codec encode` begins
PriorFolder = Annotated[
    Path | None,
    typer.Option(help="Prior: a folder of `codec train`; the built-in one of photographs if none."),
]
codec = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Compress a signal into a file with a learned prior, and train such priors.",
)


@dataclass(frozen=True)
class PriorOptions:
    """The size of the coded pictures that a prior is for, and its training."""

    bits_per_pixel: float = setting(
        1.0, "Size of the coded pictures, in bits for each pixel.", above=0, fix="Try 1."
    )
    steps: int = setting(2000, "Steps of the training.", least=1)
    crops: int = setting(500, "Parts that are cut out of the pictures.", least=1)
    tiles: int = setting(2, "Patches along each side of a part.", least=1)


Out = Annotated[Path | None, writes("The file to write; beside FILE if not given.")]


@codec.command()
@with_options()
def encode(
    file: Annotated[
        Path, typer.Argument(help="Signal: a picture, a .wav, or a .npy of frames or points.")
    ],
    out: Out = None,
    prior: PriorFolder = None,
    steps: Annotated[
        int,
        option(
            PriorOptions,
            "steps",
            help="Steps of fitting before the first part is coded; between parts come as many.",
        ),
    ] = 600,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Encode a signal as a file as long as the prior's rate: half an hour a megapixel.

    The file names the prior by its digest; who decodes needs the same prior.

    Example:  intarsia codec encode photo.png -o photo.irc
    """
    check_signal(file)
    # checked before the fitting, which takes half an hour
    place = out or file.with_suffix(".irc")
    _no_folder(place)
    target(place, "photo.irc", mark=IRC)
    signal, rate = read_signal(file)
    use_threads(threads)
    from ..areas.codec.codec import Recombiner

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
    write_bytes(place, data)
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
        bool,
        typer.Option("--inspect", help="Show kind, sizes and prior of the file; decode nothing."),
    ] = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Decode a file of `intarsia codec encode`: a PNG, a .wav, or a .npy.

    Example:  intarsia codec decode photo.irc -o photo.png
    """
    from ..areas.codec import irc

    check_signal(file)
    data = read_bytes(file)
    # the header says which prior is needed, before anything is decoded
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
    target(place, "photo.png")
    use_threads(threads)
    from ..areas.codec.codec import Recombiner

    coder, start = Recombiner.load(prior or _built_in()), time.monotonic()
    signal = coder.decode(data)
    seconds = time.monotonic() - start
    save_signal(place, signal, header.rate)
    if as_json:
        show_json(record | {"out": str(place), "seconds": seconds})
        return
    say(f"{place}: {header.kind} of {' x '.join(map(str, header.sizes))}.")
    say(_speed(seconds, _points(data)))


@codec.command()
@with_options()
def train(
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    training: PriorOptions,
    out: OutFolder = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train the prior of a codec of pictures; a training that was killed resumes.

    Example:  intarsia codec train photographs/ --bits-per-pixel 0.5 --out my-prior
    """
    # The training's checkpoints, which let a killed one resume; removed when the prior is written.
    state = out.with_name(f".{out.name}.training") if out is not None else Path()
    out = target(out, "my-prior", written_names=finished_names(out, state, "prior.json"))
    use_threads(threads)
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
    from ..areas.codec.codec import Recombiner

    arrays = [to_rgb(open_whole(path)) for path in files]
    options: dict[str, Any] = {**vars(training), "seed": seed}
    # A part has tiles x tiles patches: the batch keeps about 256 patches a step.
    batch = max(1, 256 // training.tiles**2)
    coder = Recombiner.train(arrays, batch=batch, out=state, **options)
    coder.save(out)
    shutil.rmtree(state, ignore_errors=True)
    if as_json:
        record = {"folder": str(out), "prior": coder.prior.digest.hex(), "pictures": len(files)}
        show_json(record)
        return
    say(f"{out}: prior {coder.prior.digest.hex()} of {len(files)} pictures.")
    say(f"Next:  intarsia codec encode photo.png --prior {shlex.quote(str(out))}")


def _built_in() -> Path:
    """Return the folder of the built-in prior, which was trained on photographs."""
    from ..areas.codec.codec import PHOTOGRAPHS

    return PHOTOGRAPHS


def _no_folder(target: Path) -> None:
    """Refuse, before long work, an output path that is a folder where a file is to be written."""
    if target.is_dir():
        fix = f"Name a file in it: {target / 'photo'}."
        raise ConfigError("--out", got=f"the folder {target}", want="a file", fix=fix)


def _speed(seconds: float, points: int) -> str:
    return f"{seconds:.1f} s, {seconds / points * 1e6:,.1f} s for each million points."


def _points(data: bytes) -> int:
    """Return how many pixels, samples or points are in a compressed file."""
    from ..areas.codec import irc

    header, _ = irc.read(data)
    # Pixels, samples or points: the rate is bits for each of them.
    return math.prod(header.sizes) * header.count


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
    write_bytes(target, buffer.getvalue())
