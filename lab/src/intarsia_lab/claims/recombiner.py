"""RECOMBINER: weights as samples, coded relative to a learned prior (arXiv:2309.17182)."""

from __future__ import annotations

import hashlib
import io
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from intarsia.areas.codec import irc
from intarsia.areas.codec.codec import Recombiner
from intarsia.areas.codec.coin import LR as COIN_LR
from intarsia.areas.codec.coin import coin, coin_bytes, coin_width
from intarsia.areas.codec.philox import UNIT
from intarsia.areas.codec.recombiner import RecombinerSettings
from intarsia.areas.codec.relative_entropy import candidates, choose, gumbels, packed_bytes
from intarsia.areas.codec.training import LR, MAPS_LR
from intarsia.core.quiet import kept_quiet
from intarsia.core.store import key_of
from intarsia.data import packages
from intarsia.data.photographs import photographs
from intarsia.runs.pool import Arm

from ..kit import COUNTED, FixedRate, Report, Result, Study, UnknownEffect, above, worst_of
from ..kit.arms import each, result_of, shown
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
TARGET_BITS, TARGETS = 14, 200
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
FULL = Size(2000, 2000, 600, 24, {"width": 32, "positions": 128})


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
    folder = packages.cache_dir() / "claims" / key_of(inputs)
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


def ablation(seeds: tuple[int, ...], report: Report) -> Result:
    """Return RECOMBINER's PSNR minus the PSNR of the best version without a part, in dB.

    The versions lack positional latents, linear maps of the weights, or both; all code crops of
    photographs at one bit per pixel. The values are the differences to each version, means over
    crops and seeds; the least is judged.
    """
    sheet = each(
        [Arm(name, name) for name in ARMS],
        seeds,
        lambda arm, rate, seed: coded(MINI, arm, rate, seed),
        report,
        tasks=(1.0,),
        describe=lambda packs: f"{packs.mean:.2f} dB at {packs.payload:.0f} bytes",
    )
    by_arm = {arm: sheet.by_seed(arm, 1.0) for arm in ARMS}
    full = statistics.mean(pack.mean for pack in by_arm["RECOMBINER"])
    # what each missing part costs, in dB
    less = {a: full - statistics.mean(x.mean for x in by_arm[a]) for a in ARMS if a != "RECOMBINER"}
    values = tuple(less.values())
    return result_of(
        values,
        [in_table(arm, packs) for arm, packs in by_arm.items()],
        f"{MINI.pictures} crops of photographs that no prior saw, 32 x 32; a prior of {MINI.crops} "
        f"crops, {MINI.steps} steps. {speed(MINI, by_arm['RECOMBINER'])}",
        over=min,
    )


def rate_distortion(size: Size) -> Callable[..., Result]:
    """Return a claim's measure: the gain over COIN or COMBINER at the bit rate where it is least.

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


def excess(seeds: Sequence[int]) -> float:
    """Return by which share the variance of coded samples exceeds their targets' variance.

    Relative entropy coding picks one of 2^16 random candidates, which should be a sample of the
    target. Targets have 14 normal latents of 1 bit each; 0 = unbiased.
    """
    deviation = 0.6
    # the mean at which the divergence of a latent from the prior is 1 bit
    shift = math.sqrt(2 * (math.log(2) + math.log(deviation) + 0.5) - deviation**2)
    samples = []
    for seed in seeds:
        for group in range(TARGETS):
            z = candidates(1000 + seed, group, TARGET_BITS, TARGET_BITS + 2) / UNIT
            ratio = (0.5 * z**2 - 0.5 * ((z - shift) / deviation) ** 2).sum(1)
            order = gumbels(1000 + seed, len(z), group)
            samples.append(z[choose(ratio, order)])
    return float(np.var(samples) / deviation**2 - 1)


IN_ANOTHER = """
import sys, hashlib; from pathlib import Path; from intarsia.areas.codec.codec import Recombiner
codec = Recombiner.load(sys.argv[1])
for path in sorted(Path(sys.argv[2]).iterdir()):
    print(hashlib.sha256(codec.weights(path.read_bytes()).tobytes()).hexdigest())
"""


def bits_of_files(count: int, rate: float, report: Report) -> tuple[bool, bool]:
    """Test that files decode to equal weights in another process, and that their lengths are right.

    count: of files; rate: bits a pixel. Returns both answers.
    """
    # a small codec: the test is that bytes decode alike, not how well
    settings = RecombinerSettings(patch=(16, 16), width=8, depth=1, positions=4, kl_bits=8)
    train, test = pictures(count)
    with TemporaryDirectory() as name, kept_quiet():
        folder = Path(name)
        codec = Recombiner.train(train, rate, settings, crops=64, steps=50)
        codec.save(folder / "prior")
        (folder / "files").mkdir()
        ours, right = [], True
        for i, crop in enumerate(test):
            data = codec.encode(crop[:16, :16], steps=20, seed=i)
            (folder / "files" / f"{i:02d}.irc").write_bytes(data)
            ours.append(hashlib.sha256(codec.weights(data).tobytes()).hexdigest())
            # whole codes of `bits` each: the rate is met exactly, or the format is wrong
            expected_length = packed_bytes(
                round(rate * settings.points / settings.bits), settings.bits
            )
            right &= len(irc.read(data)[1]) == expected_length
        report(f"{count} files encoded; decoding their weights in another process")
        # another process has other threads and no state of this one
        command = [sys.executable, "-c", IN_ANOTHER, str(folder / "prior"), str(folder / "files")]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return output.split() == ours, right


def coding(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the bias of coded samples, a share of their variance, one value for each seed.

    It is infinite if a file's weights differ in another process, or a payload has not its stated
    length.
    """
    equal, right = bits_of_files(50, 0.5, report)
    values = tuple(excess((seed,)) for seed in seeds)
    note = (
        f"Weights of 50 files in another process: {'equal' if equal else 'NOT equal'}. Length of "
        f"each payload: {'the stated rate' if right else 'NOT the stated rate'}. "
        f"Variance of {TARGETS} coded samples of {TARGET_BITS} latents a seed, against the target."
    )
    wrong = 0 if equal and right else math.inf
    return result_of(values, (), note, over=lambda ratios: abs(statistics.mean(ratios)) + wrong)


def prior_rates(size: Size) -> FixedRate:
    """Return the rates of a prior's parts and of COIN's networks."""
    rates = {"the prior's maps": MAPS_LR, "the rest of a prior": LR, "COIN": COIN_LR}
    steps = {"the prior's maps": size.steps, "the rest of a prior": size.steps, "COIN": COIN_STEPS}
    return FixedRate(rates, steps, "They are those of the library, for priors of any size.")


study = partial(
    Study,
    sense=">=",
    rates=prior_rates(MINI),
    control=above(
        "A picture is recognisable after coding: 20 dB.", "PSNR", 20, {"codec": "RECOMBINER"}
    ),
)

CLAIMS = (
    study(
        "recombiner-coding",
        sentence="A file decodes to the same weights in another process, has the stated length, "
        "and its samples have the variance of their targets (RECOMBINER, arXiv:2309.17182).",
        baseline="the targets' variance, at 14 bits of divergence and 2^16 candidates",
        target=0.1,
        sense="<=",
        control=COUNTED,
        rates=None,
        measure=coding,
        minutes=5,
    ),
    study(
        "recombiner-ablation",
        sentence="At equal bytes RECOMBINER is not below itself without positions, without the "
        "maps A, and without both, which is COMBINER (scaled down: 3 x 16 hidden, 1 bit a pixel).",
        baseline="the best of the three, in dB",
        target=0.0,
        measure=ablation,
        minutes=15,
    ),
    study(
        "recombiner",
        system="RECOMBINER",
        unit="dB",
        scale="The settings of recombiner-full.",
        effect=UnknownEffect(
            "Paired differences on pictures of 32 pixels are in no table that was reachable."
        ),
        work="32 x 32 crops of photographs",
        sentence="RECOMBINER is above COIN and COMBINER at three rates (scaled down: 3 x 16 "
        "hidden, a prior of 512 crops, 12 test crops).",
        baseline="COIN and COMBINER, paired by crop, in dB; the least mean of codecs and rates",
        target=0.0,
        measure=rate_distortion(MINI),
        seeds=(0,),
        minutes=30,
    ),
    study(
        "recombiner-full",
        sentence="The same with 3 x 32 hidden, 128 positions, a prior of 2,000 crops, and 24 test "
        "crops.",
        baseline="COIN and COMBINER, paired by crop, in dB; the least mean of codecs and rates",
        target=0.0,
        rates=prior_rates(FULL),
        measure=rate_distortion(FULL),
        seeds=(0,),
        needs="long",
        minutes=180,
    ),
)
