"""Telephone prompts as pictures: the spectrogram of the first two seconds of each.

The same sentence is spoken in five languages, one speaker for each: all recordings of a sentence
stay on one side of the split. The language and the speaker are confounded.
"""

from __future__ import annotations

import hashlib
import wave
from pathlib import Path

import numpy as np
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann

from intarsia.data.decoded import Decoded

LANGUAGES = ("en", "es", "fr", "it", "ru")
KINDS = ("digits", "letters", "phonetic", "sentences")
RATE, SECONDS, SIDE = 8000, 2, 128  # Hz, s, px
FLOOR = 80  # decibels below the loudest point that are black
TRAIN = 0.55  # of the names


def prompt_language(*folders: Path) -> Decoded:
    """Return 128 px grey spectrograms by language; the training names come first."""
    rows = _files_by_part(folders)
    images = np.stack([spectrogram(file) for file, _ in rows])
    return images, [LANGUAGES.index(language) for _, language in rows], list(LANGUAGES)


def prompt_kind(*folders: Path) -> Decoded:
    """Read 128 px grey spectrograms in four classes: number, letter, spelling word, sentence."""
    rows = _files_by_part(folders)
    kinds = [file.parent.name if file.parent.name in KINDS else KINDS[-1] for file, _ in rows]
    images = np.stack([spectrogram(file) for file, _ in rows])
    return images, [KINDS.index(kind) for kind in kinds], list(KINDS)


def _files_by_part(folders: tuple[Path, ...]) -> list[tuple[Path, str]]:
    files: list[tuple[bool, str, str, Path]] = []
    for folder in folders:
        for file in sorted((folder / "usr/share/asterisk/sounds").rglob("*.wav")):
            if file.parent.name != "silence":
                # The folder below sounds/ names language and voice, as en_US_f_Allison.
                place = next(p for p in file.parents if p.parent.name == "sounds")
                name = file.relative_to(place).as_posix()
                files.append((_is_for_testing(name), name, place.name[:2], file))
    return [(file, language) for _, _, language, file in sorted(files)]


def _is_for_testing(name: str) -> bool:
    """Decide by a hash of the name whether its recordings are for testing."""
    return hashlib.sha256(name.encode()).digest()[0] >= TRAIN * 256


def samples_of(file: Path, limit: int = -1) -> np.ndarray:
    """Read the first `limit` samples of a 16-bit mono WAV file as (T,) float64; -1 = all."""
    with wave.open(str(file)) as sound:
        frames = sound.getnframes() if limit < 0 else limit
        return np.frombuffer(sound.readframes(frames), "<i2").astype(np.float64)


def prompts(folder: Path, *, for_testing: bool) -> list[np.ndarray]:
    """Read the telephone prompts of a language as samples in -1 ... 1 at 8 kHz."""
    names = [file for file, _ in _files_by_part((folder,))]
    place = folder / "usr/share/asterisk/sounds"
    return [
        samples_of(file) / 32768
        for file in names
        if _is_for_testing("/".join(file.relative_to(place).parts[1:])) == for_testing
    ]


def spectrogram(file: Path) -> np.ndarray:
    """Compute a picture of a sound's first two seconds, (128, 128) uint8.

    file: a WAV file. High frequencies are above, brightness is in decibels.
    """
    samples = samples_of(file, RATE * SECONDS)
    # Shorter prompts end in silence.
    samples = np.pad(samples, (0, RATE * SECONDS - len(samples)))
    window = ShortTimeFFT(hann(2 * SIDE, sym=False), RATE * SECONDS // SIDE, RATE)
    # Rows from high to low frequency, without the constant component.
    power = window.spectrogram(samples, p0=0, p1=SIDE)[SIDE:0:-1]
    decibels = 10 * np.log10(power + 1e-12)
    # The loudest point is white; points 80 dB below it are black.
    shade = np.clip(1 + (decibels - decibels.max()) / FLOOR, 0, 1)
    return (255 * shade).round().astype(np.uint8)
