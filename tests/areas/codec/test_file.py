"""A file decodes to the same weights everywhere, and says what is wrong with it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from intarsia.areas.codec import coding, irc, signals
from intarsia.areas.codec.codec import Recombiner
from intarsia.areas.codec.levels import levels_of
from intarsia.areas.codec.philox import UNIT
from intarsia.areas.codec.prior import FIXED, Prior
from intarsia.areas.codec.recombiner import RecombinerSettings
from intarsia.areas.codec.relative_entropy import candidates, pack, packed_bytes
from intarsia.areas.codec.siren import SignalDecoder
from intarsia.core.errors import CheckpointError, ConfigError, DataError

from ...refusals import refused
from .conftest import TINY, waves

pytestmark = pytest.mark.filterwarnings("ignore:.*far from the prior")  # of few steps
IN_ANOTHER = """
import sys, hashlib
from intarsia.areas.codec import coding, irc, signals
from intarsia.areas.codec.prior import Prior
from intarsia.areas.codec.relative_entropy import unpack
prior = Prior.load(sys.argv[1])
header, payload = irc.read(open(sys.argv[2], "rb").read())
indices = unpack(payload, header.bits, len(payload) * 8 // header.bits)
tiles = signals.tiles_of(header.sizes, prior.settings)
print(hashlib.sha256(coding.latents(prior, indices, tiles).tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def picture() -> Any:
    return waves(40, 20, 37)


@pytest.fixture(scope="module")
def data(codec: Recombiner, picture: Any) -> bytes:
    return codec.encode(picture, steps=40)


def by_hand(seed: int = 0, **settings: Any) -> Prior:
    """A prior of numbers that no library computes, so that its files can be written down."""
    tiny = replace(TINY, **settings)
    random = np.random.default_rng(seed)
    decoder = SignalDecoder(tiny, generator=torch.Generator().manual_seed(0))
    for parameter in decoder.parameters():
        drawn = random.integers(-64, 65, tuple(parameter.shape)) / 512
        parameter.data = torch.from_numpy(drawn).float()
    columns = [decoder.columns] + [decoder.weights] * (tiny.levels - 1)

    def ints(low: int, high: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(random.integers(low, high, n, np.int32)) for n in columns)

    rho = tuple(torch.full((n,), -4.0) for n in columns)
    mean, scale = ints(-FIXED // 8, FIXED // 8), ints(1, FIXED // 16)
    groups = tuple(torch.arange(n, dtype=torch.int32) % 5 for n in columns)
    return Prior(tiny, decoder, mean, scale, groups, rho, 1e-6)


def test_a_decoded_picture_is_near_and_its_length_is_the_rate(
    codec: Recombiner, picture: Any, data: bytes
) -> None:
    decoded = codec.decode(data)
    assert decoded.shape == picture.shape and decoded.dtype == np.uint8
    error = np.square((decoded.astype(float) - picture) / 255).mean()
    assert error < np.square((picture.mean((0, 1)) - picture) / 255).mean() / 2
    header, payload = irc.read(data)
    patches, bits = 2 * 3, TINY.bits
    groups = round(0.4 * TINY.points / bits) * patches
    assert header == irc.Header(codec.prior.digest, "image", bits, (20, 37))
    assert len(payload) == packed_bytes(groups, bits) and len(data) == len(payload) + 23


def test_the_decoded_weights_are_the_candidates_that_the_coder_chose(
    codec: Recombiner, picture: Any, data: bytes
) -> None:
    prior, (header, payload) = codec.prior, irc.read(data)
    tiles = signals.tiles_of(header.sizes, TINY)
    weights = codec.weights(data)[0]
    levels = levels_of(TINY, tiles)
    numbers = prior.numbers(levels)[0]
    indices = [
        (int.from_bytes(payload, "little") >> (8 * i)) & 255 for i in range(numbers.max() + 1)
    ]
    for group in (0, 7, numbers.max()):
        places = np.argwhere(numbers == group)
        z = candidates(prior.key, group, len(places), TINY.bits)[indices[group]]
        mean, scale = (x[0].numpy().astype(object)[places[:, 1]] for x in (prior.mean, prior.scale))
        assert (
            weights[tuple(places.T)].tolist() == (mean * UNIT + scale * z.astype(object)).tolist()
        )


@pytest.mark.thorough
def test_another_process_of_another_processor_decodes_the_same_bits(
    codec: Recombiner, data: bytes, tmp_path: Path
) -> None:
    codec.save(tmp_path / "prior")
    (tmp_path / "photo.irc").write_bytes(data)
    older = {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3", "ATEN_CPU_CAPABILITY": "default"}
    process = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER, str(tmp_path / "prior"), str(tmp_path / "photo.irc")],
        env={**os.environ, **older, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert process == [hashlib.sha256(codec.weights(data).tobytes()).hexdigest()]


@pytest.mark.parametrize(
    ("levels", "digest"),
    [(1, "1:ecd0acd95822"), (3, "3:12dcacde2cb9")],
)
def test_files_of_version_1_decode_for_ever(levels: int, digest: str) -> None:
    """If this fails the format has changed: give it a new version, and keep the old one."""
    codec = Recombiner(by_hand(levels=levels))
    tiles = (5, 2)
    count = sum(codec.prior.counts(levels_of(codec.settings, tiles)))
    payload = pack(np.arange(count) * 37 % 256, codec.settings.bits)
    header = irc.Header(codec.prior.digest, "image", codec.settings.bits, (75, 30))
    weights = codec.weights(irc.write(header, payload))
    assert weights.shape == (1, 10, codec.prior.decoder.columns)
    assert f"{levels}:{hashlib.sha256(weights.tobytes()).hexdigest()[:12]}" == digest
    assert codec.decode(irc.write(header, payload)).shape == (75, 30, 3)


def test_the_built_in_prior_is_the_one_that_files_name() -> None:
    codec = Recombiner.load()
    assert codec.settings == RecombinerSettings(reparametrise=False, kl_bits=10)
    assert codec.prior.digest.hex() == "f8dc109779e5edb0"  # files out there need this one
    assert sum(codec.prior.counts(levels_of(codec.settings, (1, 1)))) == round(1024 / 12)


def test_a_folder_of_other_files_is_not_replaced(tmp_path: Path) -> None:
    codec, folder = Recombiner(by_hand()), tmp_path / "photos"
    for _ in range(2):  # its own it replaces
        codec.save(folder)
    (folder / "one.jpg").write_text("kept")
    with refused(ConfigError, got="other files in it, such as 'one.jpg'"):
        codec.save(folder)
    assert (folder / "one.jpg").read_text() == "kept"


def test_the_default_number_of_torch_decides_no_bit(picture: Any, tmp_path: Path) -> None:
    def made() -> tuple[bytes, bytes]:
        codec = Recombiner.train([picture], 0.4, replace(TINY, levels=2), crops=2, steps=2)
        return codec.prior.digest, codec.encode(picture, steps=2)

    single = made()
    folder = Recombiner(by_hand()).save(tmp_path / "prior")
    torch.set_default_dtype(torch.float64)
    try:
        double = made()
        assert Recombiner.load(folder).prior.digest == by_hand().digest
    finally:
        torch.set_default_dtype(torch.float32)
    assert double == single


def test_every_byte_of_the_header_is_guarded(codec: Recombiner, data: bytes) -> None:
    length = len(data) - len(irc.read(data)[1]) - 4
    for place in range(length):
        for flip in (1, 0x10, 0xFF):
            wrong = bytearray(data)
            wrong[place] ^= flip
            with refused(CheckpointError, what=".irc file"):
                codec.decode(bytes(wrong))


def test_a_thousand_damaged_bodies_and_every_truncation_are_refused(
    codec: Recombiner, data: bytes
) -> None:
    start = len(data) - len(irc.read(data)[1]) - 4
    random = np.random.default_rng(0)
    for place in random.integers(start, len(data), 1000):
        wrong = bytearray(data)
        wrong[place] ^= int(random.integers(1, 256))
        with pytest.raises(CheckpointError):
            irc.read(bytes(wrong))
    for length in range(len(data)):
        with pytest.raises(CheckpointError):
            irc.read(data[:length])
    with refused(CheckpointError, what=".irc file", got="102 bytes"):
        irc.read(data + b"\0")


def test_another_version_and_another_file_are_named(data: bytes) -> None:
    with refused(CheckpointError, what=".irc file", got="version 9"):
        irc.read(data[:3] + b"\x09" + data[4:])
    with refused(CheckpointError, what=".irc file", got="b'\\x89PN' at its start"):
        irc.read(b"\x89PNG\r\n")


def test_another_prior_is_refused_by_name(data: bytes) -> None:
    another = Recombiner(by_hand())
    with pytest.raises(CheckpointError) as refusal:
        another.decode(data)
    assert another.prior.digest.hex() in refusal.value.got and "names" in str(refusal.value.want)


def test_a_whole_header_of_another_size_is_refused(codec: Recombiner, data: bytes) -> None:
    header, payload = irc.read(data)
    for wrong in ({"sizes": (200, 37)}, {"count": 2}, {"sizes": (1 << 31, 1 << 31)}, {"bits": 9}):
        with refused(CheckpointError, what=".irc file", want="as many as the prior's groups need"):
            codec.decode(irc.write(replace(header, **wrong), payload))


def test_a_pack_shares_a_header(codec: Recombiner) -> None:
    pictures = [waves(i, 16, 16) for i in range(3)]
    data = codec.encode_many(pictures, steps=10)
    decoded = codec.decode(data)
    assert decoded.shape == (3, 16, 16, 3)
    single = len(irc.read(codec.encode(pictures[0], steps=1))[1])
    assert len(irc.read(data)[1]) == 3 * single
    with refused(DataError, what="pack"):
        codec.encode_many([pictures[0], pictures[1][:8]], steps=1)


def test_a_single_pixel_comes_back(codec: Recombiner) -> None:
    pixel = np.full((1, 1, 3), 200, np.uint8)
    assert np.abs(codec.decode(codec.encode(pixel, steps=60)).astype(int) - 200).max() < 40


def test_a_grey_picture_is_coded_as_colour(codec: Recombiner) -> None:
    grey = Image.fromarray(waves(0, 16, 16)[..., 0])
    assert codec.decode(codec.encode(grey, steps=1)).shape == (16, 16, 3)


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "HSV"])
def test_the_cure_of_a_picture_of_other_colours_cures(mode: str) -> None:
    picture = Image.new(mode, (16, 16))
    with refused(DataError, what="image"):
        signals.read(picture, "image")
    assert signals.read(picture.convert("RGB"), "image").sizes == (16, 16)


@pytest.mark.parametrize(
    ("picture", "field"),
    [
        (Image.new("RGBA", (4, 4)), "image"),
        (Image.new("I;16", (4, 4)), "image"),
        (np.zeros((4, 4, 3), np.uint16), "image"),
        (np.zeros((4, 4, 4), np.uint8), "image"),
        (np.zeros((0, 4, 3), np.uint8), "image"),
        (np.broadcast_to(np.uint8(0), (10_000, 10_000, 3)), "image"),
        (np.full((4, 4, 3), np.nan), "image"),
        ("photo.png", "image"),
    ],
    ids=["image", "16 bit", "16-bit array", "four channels", "empty", "100 Mpx", "float", "name"],
)
def test_pictures_that_have_no_8_bit_colours_are_refused(
    codec: Recombiner, picture: Any, field: str
) -> None:
    with refused(DataError, what=field):
        codec.encode(picture)


@pytest.mark.parametrize("kind", ["audio", "video", "structure"])
def test_other_signals_go_through_the_same_door(kind: str) -> None:
    patch = {"audio": (32,), "video": (16, 16, 16), "structure": (16,)}[kind]
    settings = RecombinerSettings(kind, patch, width=4, depth=1, positions=2, kl_bits=6, levels=2)
    t = np.arange(45)
    signals_by_kind = {
        "audio": np.sin(t / 5) * 0.5,
        "video": waves(1, 16, 16, 20),
        "structure": np.stack([np.cos(t), np.sin(t), t * 0.3 + 7], 1) * 4,
    }
    rate = {"audio": 1.0, "video": 0.02, "structure": 3.0}[kind]
    codec = Recombiner.train([signals_by_kind[kind]] * 2, rate, settings, crops=2, steps=8)
    data = codec.encode(signals_by_kind[kind], steps=8, rate=8000)
    decoded = codec.decode(data)
    assert decoded.shape == signals_by_kind[kind].shape and decoded.dtype in (np.uint8, np.float64)
    header, _ = irc.read(data)
    assert header.rate == (8000 if kind == "audio" else 0)
    if kind == "structure":
        np.testing.assert_allclose(header.centre, signals_by_kind[kind].mean(0), rtol=1e-6)
    for place in range(len(data) - len(irc.read(data)[1]) - 4):
        wrong = bytearray(data)
        wrong[place] ^= 4
        with pytest.raises(CheckpointError):
            codec.decode(bytes(wrong))


@pytest.mark.parametrize(
    ("samples", "got"),
    [
        ([], "nothing: shape (0,)"),
        ([0.0, np.nan], "values that are not finite"),
        ([0.0, 2.0], "samples up to 2"),
        ([[0.0]], "shape (1, 1)"),
    ],
)
def test_audio_that_is_no_sound_is_refused(samples: Any, got: str) -> None:
    with refused(DataError, got=got):
        signals.read(np.array(samples, np.float64), "audio")


@pytest.mark.parametrize("rate", [-1, 1 << 32, float("nan")])
def test_a_rate_that_no_header_holds_is_refused_before_the_fit(rate: Any) -> None:
    with refused(ConfigError, what="rate", want="0 ... 4294967295"):
        Recombiner(by_hand()).encode(np.zeros((16, 16, 3), np.uint8), rate=rate, steps=10**9)


def test_no_steps_are_no_fit(codec: Recombiner, picture: Any) -> None:
    with refused(ConfigError, what="steps", got=0):
        codec.encode(picture, steps=0)


def test_a_signal_far_from_the_prior_is_told(codec: Recombiner) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    prior = replace(codec.prior, beta=1e-12)  # as if bits cost nothing
    with pytest.warns(UserWarning, match="far from the prior"):
        Recombiner(prior).encode(noise, steps=80)


def test_edges_are_filled_and_cut_again() -> None:
    values = np.random.default_rng(0).random((20, 37, 3))
    cut, inside = signals.patches(values, TINY)
    assert cut.shape == (6, 256, 3) and inside.sum() == 20 * 37
    assert (signals.join_patches(cut, (20, 37), TINY) == values).all()
    assert coding.total_steps(by_hand(), 100) == 100 + 5 * 20
