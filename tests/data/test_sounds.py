"""Spectrograms of telephone prompts, of tones in the packages' folders."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from intarsia.data import sounds


def _tone(file: Path, hertz: float, seconds: float = 1.0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * sounds.RATE)) / sounds.RATE
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1), out.setsampwidth(2), out.setframerate(sounds.RATE)
        out.writeframes((20_000 * np.sin(2 * np.pi * hertz * time)).astype("<i2").tobytes())
    return file


def test_a_tone_is_a_line_at_its_height_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    picture = sounds.spectrogram(_tone(tmp_path / "a.wav", 1000))
    assert picture.shape == (128, 128) and picture.dtype == np.uint8
    row = 128 - 1000 * 2 * sounds.SIDE // sounds.RATE  # rows of 31 Hz, high ones above
    assert picture[:, 30].argmax() == row and picture[row, 30] > 250
    assert (picture[:, 70:] == 0).all()  # one second of two


def test_a_recording_longer_than_two_seconds_is_cut(tmp_path: Path) -> None:
    assert (sounds.spectrogram(_tone(tmp_path / "a.wav", 500, 3.0)).max(0) > 200).all()


def test_all_recordings_of_a_name_are_on_one_side(tmp_path: Path) -> None:
    names = [f"digits/{n}" for n in range(6)] + ["letters/a", "hello", "silence/1"]
    for folder, voice in (("one", "en_f"), ("two", "fr_f")):
        for name in names:
            root = tmp_path / folder / "usr/share/asterisk/sounds" / voice
            _tone(root / f"{name}.wav", 300, 0.4)
    folders = tmp_path / "one", tmp_path / "two"
    _, languages, classes = sounds.prompt_language(*folders)
    assert len(languages) == 16 and classes == list(sounds.LANGUAGES)  # without silence
    rows = sounds._files_by_part(folders)
    late = [sounds._is_for_testing("/".join(file.parts[-2:])) for file, _ in rows]
    late = [sounds._is_for_testing(f.name) if f.name == "hello.wav" else x
            for x, (f, _) in zip(late, rows, strict=True)]  # fmt: skip
    assert late == sorted(late) and 0 < sum(late) < 16
    _, kinds, names = sounds.prompt_kind(*folders)
    assert [kinds.count(names.index(kind)) for kind in names] == [12, 2, 0, 2]


def test_prompts_for_testing_are_no_others(tmp_path: Path) -> None:
    for n in range(9):
        root = tmp_path / "usr/share/asterisk/sounds/en_f/digits"
        _tone(root / f"{n}.wav", 300 + 10 * n, 0.2 + 0.01 * n)
    early, late = (sounds.prompts(tmp_path, for_testing=late) for late in (False, True))
    assert len(early) + len(late) == 9 and early and late
    assert len({len(prompt) for prompt in (*early, *late)}) == 9
    assert 0.6 < np.abs(early[0]).max() <= 1
