"""RECOMBINER on speech next to Opus at the same bytes.

    python benchmarks/codec_audio.py --write              # about ten minutes
    python benchmarks/codec_audio.py --clips 2 --crops 8 --steps 5 --fit 5     # a smoke test

Clips of 800 samples (a tenth of a second) of telephone prompts with sentences that no prior
saw. Opus is made for hearing and not for squared error, and its packets stand alone: its curve is
drawn and nothing is judged.
"""

from __future__ import annotations

import argparse
import io
import math
import time

import numpy as np
import soundfile
from frame import markdown, parser, publish, read

from intarsia.areas.codec import irc
from intarsia.areas.codec.codec import Recombiner
from intarsia.areas.codec.recombiner import RecombinerSettings
from intarsia.data.packages import obtain, pinned
from intarsia.data.sounds import RATE, prompts

Array = np.ndarray
LENGTH, LOUD = 800, 0.02  # samples of a clip, and its least standard deviation
RATES = 0.5, 1.0, 2.0  # bits a sample: 4, 8, 16 kbit/s
LEVELS = 1.0, 0.985, 0.97, 0.95, 0.9  # of compression, for Opus
HEAD = ["codec", "kbit/s of the payload", "PSNR, dB", "encoding, CPU s a second of sound"]


def clips(late: bool, count: int, seed: int) -> list[Array]:
    """Loud parts of prompts, each at a drawn place."""
    random = np.random.default_rng(seed)
    whole = prompts(obtain(pinned("asterisk-core-sounds-en-wav")), for_testing=late)
    found: list[Array] = []
    while len(found) < count:
        one = whole[random.integers(len(whole))]
        if len(one) >= LENGTH:
            at = random.integers(len(one) - LENGTH + 1)
            if (clip := one[at : at + LENGTH]).std() >= LOUD:
                found.append(clip)
    return found


def psnr(a: Array, b: Array) -> float:
    """Of samples in -1 ... 1, which have a range of 2, in dB."""
    return -10 * math.log10(max(float(np.square((a - b) / 2).mean()), 1e-12))


def packets(data: bytes) -> list[int]:
    """Bytes of each packet of an Ogg file, by the lacing of its pages (RFC 3533)."""
    found, at, open_one = [], 0, 0
    while at < len(data):
        count = data[at + 26]
        lacing = data[at + 27 : at + 27 + count]
        for size in lacing:
            open_one += size
            if size < 255:
                found.append(open_one)
                open_one = 0
        at += 27 + count + sum(lacing)
    return found


def opus(clip: Array, level: float) -> tuple[int, Array]:
    """Bytes of the packets of sound, and the samples that come back."""
    kept = io.BytesIO()
    soundfile.write(kept, clip, RATE, format="OGG", subtype="OPUS", compression_level=level)
    size = sum(packets(kept.getvalue())[2:])  # two packets are headers
    kept.seek(0)
    found, _ = soundfile.read(kept)
    return size, np.pad(found, (0, max(0, len(clip) - len(found))))[: len(clip)]


def line(name: str, size: float, quality: list[float], seconds: float | None) -> list[str]:
    spread = np.std(quality, ddof=1) / math.sqrt(len(quality))
    spent = "" if seconds is None else f"{seconds:.0f}"
    rate = 8 * size * RATE / LENGTH / 1000
    return [name, f"{rate:.1f}", f"{np.mean(quality):.2f} (s.e. {spread:.2f})", spent]


def ours(args: argparse.Namespace) -> list[list[str]]:
    """A row for each rate; each has a prior of its own."""
    train, test, rows = clips(False, args.crops, 1), clips(True, args.clips, 2), []
    settings = RecombinerSettings(kind="audio", patch=(LENGTH,))
    for rate in RATES:
        codec = Recombiner.train(train, rate, settings, crops=args.crops, steps=args.steps)
        start = time.process_time()
        data = codec.encode_many(test, steps=args.fit)
        spent = (time.process_time() - start) * RATE / (LENGTH * len(test))
        quality = [psnr(a, b) for a, b in zip(test, codec.decode(data), strict=True)]
        rows.append(line("RECOMBINER", len(irc.read(data)[1]) / len(test), quality, spent))
    return rows


def theirs(args: argparse.Namespace) -> list[list[str]]:
    """A row for each of Opus's levels."""
    test, rows = clips(True, args.clips, 2), []
    for level in LEVELS:
        made = [opus(clip, level) for clip in test]
        quality = [psnr(a, b) for a, (_, b) in zip(test, made, strict=True)]
        size = sum(size for size, _ in made) / len(made)
        rows.append(line(f"Opus, level {level:g}", size, quality, None))
    return rows


def main() -> None:
    made = parser(__doc__, threads=1, reps=1)
    for name, value in (("clips", 60), ("crops", 512), ("steps", 600), ("fit", 300)):
        made.add_argument(f"--{name}", type=int, default=value)
    args = read(made)
    silence = line(
        "silence", 0, [psnr(clip, 0 * clip) for clip in clips(True, args.clips, 2)], None
    )
    about = (
        f"{args.clips} clips of {LENGTH} samples at {RATE:,} Hz; a prior of {args.crops} clips of "
        f"other sentences by the same speaker, {args.steps} steps; {args.fit} steps of encoding. "
        "PSNR of the waveform, which has a range of 2. Opus is made for hearing, codes a tenth of "
        "a second as six packets, and is drawn, not judged. Headers of both files are left out."
    )
    publish(
        "The codec on speech", about, markdown(HEAD, [silence, *ours(args), *theirs(args)]), args
    )


if __name__ == "__main__":
    main()
