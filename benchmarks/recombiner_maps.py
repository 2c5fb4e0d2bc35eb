"""RECOMBINER with its maps, without them, and COMBINER, on crops that no claim trains on or judges.

    python benchmarks/recombiner_maps.py --out runs/maps           # resumes where it stopped
    python benchmarks/recombiner_maps.py --out runs/maps --write   # and a page below docs

Of the photographs on which the claim trains, every fifth is left out here; two crops of each of
these five are coded. The order that the paper states is: maps, no maps, COMBINER.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from frame import markdown, parser, publish, read

from intarsia.areas.codec.codec import Recombiner
from intarsia.areas.codec.recombiner import RecombinerSettings
from intarsia.core.files import write_json
from intarsia.reports.statistics import paired_interval
from intarsia_lab.experiments.recombiner import ARMS, RATES, SIDE, pictures, psnr

METHODS = {"maps": "RECOMBINER", "no maps": "no maps", "COMBINER": "COMBINER"}
CROPS = 10


def parts() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the photographs to train on and the crops to code."""
    photographs, _ = pictures(1)
    random, left_out, crops = np.random.default_rng(1), photographs[::5], []
    for i in range(CROPS):
        image = left_out[i % len(left_out)]
        top, left = (int(random.integers(0, side - SIDE + 1)) for side in image.shape[:2])
        crops.append(image[top : top + SIDE, left : left + SIDE])
    return [p for i, p in enumerate(photographs) if i % 5], crops


def decibels(method: str, rate: float, seed: int, args: argparse.Namespace) -> list[float]:
    """Return the PSNR in dB of each crop; a result that is stored is read."""
    file = args.out / f"{method.replace(' ', '-')}-{rate}-{seed}.json"
    if file.exists():
        return json.loads(file.read_text())["decibels"]
    train, crops = parts()
    settings = RecombinerSettings(**ARMS[METHODS[method]])
    start = time.process_time()
    codec = Recombiner.train(
        train, rate, settings, crops=128, steps=200, seed=seed, out=file.with_suffix("")
    )
    pictures_back = codec.decode(codec.encode_many(crops, steps=100, seed=seed))
    values = [float(psnr(a, b)) for a, b in zip(crops, pictures_back, strict=True)]
    write_json(file, {"decibels": values, "seconds": time.process_time() - start})
    return values


def difference(ours: list[list[float]], theirs: list[list[float]]) -> str:
    """Describe the mean difference and its 95 % interval over crops and seeds."""
    crops = [np.arange(CROPS)] * len(ours)
    arms = ([np.array(values) for values in arm] for arm in (ours, theirs))
    paired = paired_interval(crops, *arms)
    mean = statistics.mean(map(statistics.mean, ours)) - statistics.mean(
        map(statistics.mean, theirs)
    )
    return (
        f"{mean:+.2f}"
        if paired is None
        else f"{mean:+.2f} ({paired.low:+.2f} to {paired.high:+.2f})"
    )


def main() -> None:
    arguments = parser(__doc__, threads=1, reps=1)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--seeds", type=int, default=3)
    args = read(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    values = {
        (rate, method): [decibels(method, rate, seed, args) for seed in range(args.seeds)]
        for rate in RATES
        for method in METHODS
    }
    rows = []
    for rate in RATES:
        maps, plain, combiner = (values[rate, method] for method in METHODS)
        means = [f"{statistics.mean(map(statistics.mean, v)):.2f}" for v in (maps, plain, combiner)]
        rows.append([f"{rate:g}", *means, difference(maps, plain), difference(plain, combiner)])
    head = ["bits a pixel", *(f"{name}, dB" for name in METHODS)]
    head += ["maps less no maps", "no maps less COMBINER"]
    about = (
        f"{CROPS} crops of {SIDE} x {SIDE} px of five photographs on which neither training nor "
        f"the claim's test looks; a prior of 128 crops and 200 steps, {args.seeds} seeds. "
        "PSNR, means; differences with 95 % intervals over crops and seeds."
    )
    publish("RECOMBINER's parts on validation crops", about, markdown(head, rows), args)


if __name__ == "__main__":
    main()
