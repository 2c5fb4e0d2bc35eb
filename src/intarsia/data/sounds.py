"""Telephone prompts as pictures: the spectrogram of the first two seconds of each.

The same sentence is spoken in five languages, one speaker for each: all recordings of a sentence
stay on one side of the split. Which language is spoken and who speaks cannot be told apart.
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
    """128 px grey spectrograms, by language; those whose names are for training come first."""
    rows = _rows(folders)
    images = np.stack([spectrogram(file) for file, _ in rows])
    return images, [LANGUAGES.index(language) for _, language in rows], list(LANGUAGES)


def prompt_kind(*folders: Path) -> Decoded:
    """The same pictures, by what is said: a number, a letter, its word for spelling, a sentence."""
    rows = _rows(folders)
    kinds = [file.parent.name if file.parent.name in KINDS else KINDS[-1] for file, _ in rows]
    images = np.stack([spectrogram(file) for file, _ in rows])
    return images, [KINDS.index(kind) for kind in kinds], list(KINDS)


def _rows(folders: tuple[Path, ...]) -> list[tuple[Path, str]]:
    """Files and their languages, those of the training part first; silence is left out."""
    found: list[tuple[bool, str, str, Path]] = []
    for folder in folders:
        for file in sorted((folder / "usr/share/asterisk/sounds").rglob("*.wav")):
            if file.parent.name != "silence":
                place = next(p for p in file.parents if p.parent.name == "sounds")
                name = file.relative_to(place).as_posix()
                found.append((_late(name), name, place.name[:2], file))
    return [(file, language) for _, _, language, file in sorted(found)]


def _late(name: str) -> bool:
    """Whether the recordings of that name are for testing."""
    return hashlib.sha256(name.encode()).digest()[0] >= TRAIN * 256


def samples_of(file: Path, most: int = -1) -> np.ndarray:
    """The first samples of a 16-bit mono file, all of them for -1.  -> (T,) float64."""
    with wave.open(str(file)) as sound:
        count = sound.getnframes() if most < 0 else most
        return np.frombuffer(sound.readframes(count), "<i2").astype(np.float64)


def prompts(folder: Path, *, late: bool) -> list[np.ndarray]:
    """Prompts of a language as samples in -1 ... 1, 8 kHz; late: of the names for testing."""
    names = [file for file, _ in _rows((folder,))]
    place = folder / "usr/share/asterisk/sounds"
    return [
        samples_of(file) / 32768
        for file in names
        if _late("/".join(file.relative_to(place).parts[1:])) == late
    ]


def spectrogram(file: Path) -> np.ndarray:
    """(128, 128) uint8: high frequencies above, time to the right, decibels from black to white."""
    samples = samples_of(file, RATE * SECONDS)
    samples = np.pad(samples, (0, RATE * SECONDS - len(samples)))
    window = ShortTimeFFT(hann(2 * SIDE, sym=False), RATE * SECONDS // SIDE, RATE)
    power = window.spectrogram(samples, p0=0, p1=SIDE)[SIDE:0:-1]
    decibels = 10 * np.log10(power + 1e-12)
    shade = np.clip(1 + (decibels - decibels.max()) / FLOOR, 0, 1)
    return (255 * shade).round().astype(np.uint8)
