"""RECOMBINER: weights as samples, coded relative to a learned prior (arXiv:2309.17182)."""

from __future__ import annotations

import io
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from intarsia.areas.codec import irc
from intarsia.areas.codec.codec import Recombiner
from intarsia.areas.codec.coin import coin, coin_bytes, coin_width
from intarsia.areas.codec.recombiner import RecombinerSettings
from intarsia.core.quiet import kept_quiet
from intarsia.core.store import key_of
from intarsia.data import packages
from intarsia.data.photographs import photographs
from intarsia.runs.pool import Arm

from ..kit import Effect, Report, Result, Study, worst_of
from ..kit.arms import each, shown
from ..kit.stored import StoredResults

stored = StoredResults(__file__)

Array = np.ndarray[Any, Any]
ARMS: Mapping[str, dict[str, Any]] = {
    "RECOMBINER": {},
    "no positions": {"positions": 0},
    "no maps": {"reparametrise": False},
    "COMBINER": {"positions": 0, "reparametrise": False},
}
# photographs are shrunk before they are cut, or a crop of 32 px would be one colour
SIDE, SHRINK, HELD_OUT = 32, 8, 5  # every fifth photograph is for testing
RATES = 0.5, 1.0, 2.0  # bits for each pixel of the payload
QUALITIES = {
    "JPEG": (1, 5, 15, 30, 60, 80),
    "WEBP": (0, 2, 10, 25, 50, 80),
    "AVIF": (10, 30, 45, 60, 75, 88),
}
COIN_STEPS = 1500


class Size(NamedTuple):
    """The sizes of a run: crops and steps of the prior, steps of a fit, test crops, the network."""

    crops: int
    steps: int
    fit: int
    pictures: int
    network: dict[str, Any]


# twelve crops: differences of a dB with a spread of one are seen by ten with 80 % power
MINI = Size(512, 800, 300, 12, {})


class CodedPack(NamedTuple):
    """The PSNR in dB of each test crop, the payload in bytes, and CPU seconds of all crops."""

    psnr: list[float]
    payload: float
    train: float
    encode: float
    decode: float

    @property
    def mean(self) -> float:
        """The mean PSNR over the test crops, in dB."""
        return statistics.mean(self.psnr)


@cache
def pictures(count: int) -> tuple[list[Array], list[Array]]:
    """Return photographs to train a prior on, and `count` crops of other photographs to test on."""
    images = [photograph.pixels for photograph in photographs(shrink=SHRINK)]
    # crops of photographs that the prior has seen nothing of
    test, random = images[::HELD_OUT], np.random.default_rng(0)
    crops = []
    for i in range(count):
        image = test[i % len(test)]
        top, first_column = (int(random.integers(0, side - SIDE + 1)) for side in image.shape[:2])
        crops.append(image[top : top + SIDE, first_column : first_column + SIDE])
    return [photograph for i, photograph in enumerate(images) if i % HELD_OUT], crops


def psnr(a: Array, b: Array) -> float:
    """Return the peak signal-to-noise ratio of two 8-bit pictures, in dB."""
    error = np.square((a.astype(float) - b) / 255).mean()
    return -10 * math.log10(max(error, 1e-10))


def coded(size: Size, arm: str, rate: float, seed: int) -> CodedPack:
    """Code the test crops by one codec at one bit rate; return the quality, bytes and times.

    The result is stored, and read if it was computed before; a training that was killed resumes.
    size: counts of crops and steps; arm: "COIN" (a small network for each crop) or a key of ARMS
    (networks coded relative to a learned prior); rate: bits a pixel.
    """
    inputs = {"size": list(size), "arm": arm, "rate": rate, "seed": seed}
    run = by_coin if arm == "COIN" else by_prior
    folder = packages.cache_dir() / "experiments" / key_of(inputs)
    with kept_quiet():
        return CodedPack(*stored("recombiner", inputs, lambda: run(size, arm, rate, seed, folder)))


def by_prior(size: Size, arm: str, rate: float, seed: int, folder: Path) -> CodedPack:
    """Train a RECOMBINER codec, code the test crops with it, and measure the decoded ones.

    A crop becomes the weights of a small network, coded relative to a learned prior. size: counts
    of crops and steps; arm: key of ARMS, which parts of the method are left out; rate: bits a
    pixel; folder: keeps the state of the training. Returns PSNR in dB of each crop, the payload's
    mean bytes, and CPU seconds to train, encode and decode.
    """
    train, test = pictures(size.pictures)
    settings = RecombinerSettings(**{**size.network, **ARMS[arm]})
    clock = [time.process_time()]
    options = {"crops": size.crops, "steps": size.steps, "seed": seed, "out": folder}
    # step 1: the prior, from crops of other photographs
    codec = Recombiner.train(train, rate, settings, **options)
    clock.append(time.process_time())
    # step 2: fit and code each crop, relative to the prior
    data = codec.encode_many(test, steps=size.fit, seed=seed)
    clock.append(time.process_time())
    # step 3: what a receiver sees, from the bytes alone
    decoded = codec.decode(data)
    clock.append(time.process_time())
    values = [psnr(a, b) for a, b in zip(test, decoded, strict=True)]
    seconds = [b - a for a, b in zip(clock, clock[1:], strict=False)]
    return CodedPack(values, len(irc.read(data)[1]) / len(test), *seconds)


def by_coin(size: Size, arm: str, rate: float, seed: int, folder: Path) -> CodedPack:
    """Fit one small network, its weights as the code, to each test crop (COIN); measure it.

    size: counts of test crops; rate: bits a pixel, which give the network's width; arm, folder:
    unused, `by_prior` needs them. Returns the same as `by_prior`, with no prior to train.
    """
    _, test = pictures(size.pictures)
    width = coin_width(round(rate * SIDE * SIDE / 8), 2, 2, 3)
    sizes = [2, width, width, 3]
    # pixel centres in -1 ... 1
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    coordinates = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2)
    values = torch.from_numpy(np.stack(test)).float().view(len(test), -1, 3) / 255
    start = time.process_time()
    decoded = (
        coin(values, coordinates, sizes, steps=COIN_STEPS, seed=seed).clamp(0, 1).mul(255).round()
    )
    spent = time.process_time() - start
    shape = (SIDE, SIDE, 3)
    quality = [psnr(a, b.view(shape).numpy()) for a, b in zip(test, decoded, strict=True)]
    return CodedPack(quality, coin_bytes(sizes), 0.0, spent, 0.0)


def classical(size: Size) -> list[dict[str, Any]]:
    """Return table rows of JPEG, WebP and AVIF at several qualities.

    Bits per pixel are with and without the header, which is the size of a file of a flat picture.
    """
    _, test = pictures(size.pictures)
    rows = []
    for form, qualities in QUALITIES.items():
        empty = len(file(np.full((SIDE, SIDE, 3), 128, np.uint8), form, 50))
        for quality in qualities:
            files = [file(crop, form, quality) for crop in test]
            # a header would be most of the file at 32 x 32 pixels
            bits = statistics.mean(len(data) for data in files) * 8
            decoded = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]
            quality = statistics.mean(psnr(a, b) for a, b in zip(test, decoded, strict=True))
            less = max(bits - empty * 8, 0) / SIDE**2
            rows.append(row(form, less, bits / SIDE**2, f"{quality:.2f}"))
    return rows


def file(pixels: Array, form: str, quality: int) -> bytes:
    """Return the bytes of a picture file.

    pixels: (H, W, 3) of 8 bits; form: "JPEG", "WEBP" or "AVIF"; quality: 0 to 100.
    """
    buffer = io.BytesIO()
    options = {"JPEG": {"optimize": True}, "WEBP": {"method": 6}, "AVIF": {"speed": 4}}[form]
    Image.fromarray(pixels).save(buffer, form, quality=quality, **options)
    return buffer.getvalue()


def row(codec: str, payload: float, file_bits: float, quality: str) -> dict[str, Any]:
    """Return a row of the table of codecs.

    codec: its name; payload: bits per pixel without a header; file_bits: with it; quality: PSNR as
    text.
    """
    names = "codec", "bits per pixel", "of a file of one picture", "PSNR"
    return dict(zip(names, (codec, f"{payload:.2f}", f"{file_bits:.2f}", quality), strict=True))


def in_table(name: str, packs: Sequence[CodedPack]) -> dict[str, Any]:
    """Return a table row of a codec that stores networks.

    name: of the codec; packs: its results, one for each seed. A file of one picture has a header of
    24 bytes.
    """
    payload = packs[0].payload * 8 / SIDE**2
    file_bits = payload + (0 if name == "COIN" else 24 * 8 / SIDE**2)
    return row(name, payload, file_bits, shown([pack.mean for pack in packs], ".2f"))


def speed(size: Size, packs: Sequence[CodedPack]) -> str:
    """Return the CPU seconds to code and decode a megapixel, and to train a prior, as a sentence.

    size: counts of test crops; packs: results of RECOMBINER.
    """
    pixels = size.pictures * SIDE**2 / 1e6
    encode, decode = (
        statistics.mean(getattr(pack, field) for pack in packs) / pixels
        for field in ("encode", "decode")
    )
    train = statistics.mean(pack.train for pack in packs)
    return (
        f"RECOMBINER encodes a megapixel in {encode:,.0f} CPU seconds and decodes it in "
        f"{decode:.1f}; a prior takes {train:.0f}."
    )


def rate_distortion(size: Size) -> Callable[..., Result]:
    """Return a measure: the gain over COIN or COMBINER at the bit rate where it is least.

    In dB of each crop. size: counts of crops and steps.
    """

    def run(seeds: tuple[int, ...], report: Report) -> Result:
        """Return RECOMBINER's gain in PSNR over COMBINER and COIN, in dB, at three bit rates."""
        names = "RECOMBINER", "COMBINER", "COIN"
        sheet = each(
            [Arm(name, name) for name in names],
            seeds,
            lambda arm, rate, seed: coded(size, arm, rate, seed),
            report,
            tasks=RATES,
            describe=lambda packs: f"{packs.mean:.2f} dB at {packs.payload:.0f} bytes",
        )
        by_arm = {(a, r): sheet.by_seed(a, r) for r in RATES for a in names}
        # (codec, rate) -> crop -> PSNR, the mean over seeds
        by_crop = {
            k: dict(
                enumerate(map(statistics.mean, zip(*(pack.psnr for pack in packs), strict=True)))
            )
            for k, packs in by_arm.items()
        }
        # pairs of one crop: crops differ by more than codecs do
        gains = {
            (arm, rate): [by_crop["RECOMBINER", rate][i] - value for i, value in crops.items()]
            for (arm, rate), crops in by_crop.items()
            if arm != "RECOMBINER"
        }
        rows = [in_table(arm, packs) for (arm, _), packs in by_arm.items()] + classical(size)
        ours = [pack for rate in RATES for pack in by_arm["RECOMBINER", rate]]
        note = (
            f"{size.pictures} crops of 32 x 32 px; JPEG, WebP and AVIF are drawn, not judged: "
            f"at this size their headers decide, so the first column leaves them out. "
            f"{speed(size, ours)} Values are gains over a codec at its bits a pixel."
        )
        return worst_of(
            {f"{arm} at {rate:g}": g for (arm, rate), g in gains.items()}, ">=", rows, note
        )

    return run


STUDIES = (
    Study(
        "recombiner",
        system="RECOMBINER",
        arxiv="2309.17182",
        question="Is RECOMBINER above COIN and COMBINER at equal rates?",
        effect=Effect(
            "above COMBINER and codecs of autoencoders at low rates",
            "CIFAR-10, curves without a number",
            "figure 3",
            sign=1,
        ),
        work="12 crops of photographs of 32 x 32, a prior of 512 crops",
        baseline="COIN and COMBINER, paired by crop; the least mean of both and of three rates",
        unit="dB",
        differs="A network of 3 x 16 hidden units and one draw; the interval is over crops.",
        measure=rate_distortion(MINI),
        seeds=(0,),
        minutes=15,
    ),
)
