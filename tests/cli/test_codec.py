"""`intarsia codec train`, `encode` and `decode` on small files."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile
from typer.testing import CliRunner

from intarsia.areas.codec.codec import Recombiner
from intarsia.areas.codec.recombiner import CARD, RecombinerSettings
from intarsia.cli import app

from ..killed import calls_of, killed_at

ENCODE, DECODE = ("codec", "encode"), ("codec", "decode")
TINY = RecombinerSettings(**CARD.tiny)


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photo.png, and the priors of pictures and of sounds."""
    root = tmp_path_factory.mktemp("codec")
    ramp = np.linspace(0, 255, 20 * 24 * 3).reshape(20, 24, 3).astype(np.uint8)
    Image.fromarray(ramp).save(root / "photo.png")
    Recombiner.train([ramp], 0.4, TINY, crops=4, steps=60).save(root / "prior")
    sound = RecombinerSettings("audio", (32,), width=4, depth=1, positions=2, kl_bits=6)
    wave = np.sin(np.arange(90) / 9) * 0.5
    Recombiner.train([wave], 1.0, sound, crops=2, steps=10).save(root / "sounds")
    wavfile.write(root / "hum.wav", 8000, (wave * 32767).astype(np.int16))
    return root


def test_a_photograph_goes_into_a_file_and_comes_back(folder: Path) -> None:
    prior = ("--prior", folder / "prior")
    done = run(*ENCODE, folder / "photo.png", *prior, "--steps", 30, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["bytes"] == (folder / "photo.irc").stat().st_size
    assert report["steps"] == 30 + int(done.stderr.split(" more between")[0].split()[-1]) > 30
    assert run(*DECODE, folder / "photo.irc", *prior).exit_code == 0
    with Image.open(folder / "photo.decoded.png") as picture:
        assert picture.size == (24, 20) and picture.mode == "RGB"
    header = json.loads(run(*DECODE, folder / "photo.irc", "--inspect", "--json").stdout)
    assert header["kind"] == "image" and header["sizes"] == [20, 24]
    assert header["prior"] == report["prior"]


@pytest.mark.filterwarnings("ignore:.*far from the prior")
def test_a_sound_keeps_its_rate(folder: Path) -> None:
    prior, out = ("--prior", folder / "sounds"), folder / "hum.irc"
    assert run(*ENCODE, folder / "hum.wav", "-o", out, *prior, "--steps", 5).exit_code == 0
    assert run(*DECODE, out, *prior, "-o", folder / "again.wav").exit_code == 0
    rate, samples = wavfile.read(folder / "again.wav")
    assert rate == 8000 and samples.shape == (90,) and samples.dtype == np.int16


@pytest.mark.slow
def test_killed_at_any_moment_the_old_file_or_the_new_one_has_the_name(
    folder: Path, tmp_path: Path
) -> None:
    out, words = tmp_path / "a.irc", ("--prior", folder / "prior", "--steps", 2, "--seed")
    assert run(*ENCODE, folder / "photo.png", "-o", out, *words, 0).exit_code == 0
    old = out.read_bytes()

    def work() -> None:
        run(*ENCODE, folder / "photo.png", "-o", out, *words, 1)

    total, new = calls_of(work), out.read_bytes()
    assert new != old
    for number in {*np.linspace(0, total - 1, 4).astype(int).tolist(), *range(total - 8, total)}:
        out.write_bytes(old)
        assert killed_at(number, work)
        assert out.read_bytes() in (old, new)
        work()
        assert out.read_bytes() == new
        assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["a.irc"]


def huge(path: Path) -> Path:
    """A PNG whose header says 10,000 x 10,000 px."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(chunk))
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + crc
    path.write_bytes(head + struct.pack(">I", 100) + b"IDAT")
    return path


def test_what_cannot_be_encoded_is_one_panel(folder: Path) -> None:
    prior = ("--prior", folder / "prior")
    Image.new("RGBA", (4, 4)).save(folder / "clear.png")
    Image.new("I;16", (4, 4)).save(folder / "deep.png")
    (folder / "torn.png").write_bytes((folder / "photo.png").read_bytes()[:90])
    (folder / "torn.wav").write_bytes(b"RIFF")
    wavfile.write(folder / "empty.wav", 8000, np.zeros(0, np.int16))
    huge(folder / "huge.png")
    for name, words in (
        ("clear.png", "alpha"),
        ("deep.png", "8 bits"),
        ("torn.png", "whole picture"),
        ("torn.wav", "whole .wav"),
        ("huge.png", "10000 x 10000"),
        ("nothing.png", "no such file"),
        ("photo.png/..", "a folder"),
    ):
        done = run(*ENCODE, folder / name if "/" not in name else folder, *prior)
        assert done.exit_code == 2 and words in " ".join(done.output.split()), done.output
    done = run(*ENCODE, folder / "empty.wav", "--prior", folder / "sounds")
    assert done.exit_code == 2 and "nothing" in done.output


def test_another_prior_and_a_damaged_file_are_one_panel(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "photo.irc"
    run(*ENCODE, folder / "photo.png", "-o", out, "--prior", folder / "prior", "--steps", 1)
    done = run(*DECODE, out, "--prior", folder / "sounds")
    assert done.exit_code == 2 and "which the file names" in " ".join(done.output.split())
    out.write_bytes(out.read_bytes()[:-1])
    done = run(*DECODE, out, "--inspect")
    assert done.exit_code == 2 and "got" in done.output
    done = run(*DECODE, out.with_name("no.irc"))
    assert done.exit_code == 2 and "no such file" in done.output


def test_a_target_of_another_kind_is_refused(folder: Path) -> None:
    out, prior = folder / "other.irc", ("--prior", folder / "prior")
    run(*ENCODE, folder / "photo.png", "-o", out, *prior, "--steps", 1)
    done = run(*DECODE, out, *prior, "-o", folder / "photo.wav")
    assert done.exit_code == 2 and ".png" in done.output


def test_a_folder_is_no_target_and_is_refused_before_the_work(folder: Path, tmp_path: Path) -> None:
    prior, irc = ("--prior", folder / "prior"), folder / "third.irc"
    run(*ENCODE, folder / "photo.png", "-o", irc, *prior, "--steps", 1)
    (tmp_path / "kept.txt").write_text("kept")
    for words in ((*ENCODE, folder / "photo.png", "--steps", 10**9), (*DECODE, irc)):
        done = run(*words, "-o", tmp_path, *prior)
        assert done.exit_code == 2 and "--out" in done.output
    assert (tmp_path / "kept.txt").read_text() == "kept"


def test_a_prior_is_trained_from_a_folder(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "one.png")
    saved = tmp_path / "prior"
    words = ("codec", "train", tmp_path, "--out", saved, "--steps", 2, "--crops", 1, "--tiles", 1)
    assert run(*words).exit_code == 0
    assert Recombiner.load(saved).settings.kind == "image"
    assert run(*words).exit_code == 2  # the folder is there
    assert run("codec", "train", tmp_path).exit_code == 2
    (tmp_path / "none").mkdir()
    assert run("codec", "train", tmp_path / "none", "--out", tmp_path / "x").exit_code == 2
