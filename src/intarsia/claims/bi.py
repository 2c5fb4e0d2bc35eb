"""Adapters of one bit against floats of as many bytes, and of as many weights (MIX6)."""

from __future__ import annotations

import statistics
import tempfile
from typing import Any, NamedTuple

import numpy as np

from ..adapters import Bottleneck
from ..core import Claim, Result
from ..core.claim import Report
from ..experiments.pool import Arm
from ..fitting import fit
from ..hosts import adapt, pack, packed_size
from ..methods import BiAdapter
from ..results.sheet import Sheet, deviation
from . import mix6
from .study import each

TASKS = ("rotate", "flip")
STEPS, LR = 1500, 5e-3
# of 0.1, 1 and 4, tried on 240 of the training digits: the best of each of the first three arms
SCALE = 4.0
RATIO, POINTS, BYTES = 0.6, 1.5, 0.02


def adapter(width: int, bits: int, codebook: str = "median") -> BiAdapter:
    """A bottleneck of so many bits a weight."""
    over = Bottleneck(width, norm="none", scale=SCALE)
    return BiAdapter(over, bits=bits, codebook=codebook)


ONE, SAME_BYTES, SAME_WIDTH = "1 bit, width 32", "float, width 1", "float, width 32"
ARMS = (
    Arm(ONE, adapter(32, 1)),
    Arm(SAME_BYTES, adapter(1, 32)),
    Arm(SAME_WIDTH, adapter(32, 32)),
    Arm("1 bit, width 32, Lloyd", adapter(32, 1, "lloyd")),
    Arm("2 bit, width 32", adapter(32, 2)),
)


class BiRun(NamedTuple):
    """Error on the test digits; bytes of the packed file and by the formula."""

    error: float
    size: int
    formula: int


def train(method: BiAdapter, task: str, seed: int) -> BiRun:
    """One arm on one task."""
    model = adapt(mix6.backbone(), method, targets=["mlp"], seed=seed)  # with a float head
    rows, epochs = mix6.data("train", [task]), mix6.epochs(STEPS, 1)
    fit(model, rows, epochs=epochs, batch_size=mix6.BATCH, lr=LR, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        size = pack(model, folder).stat().st_size
    return BiRun(mix6.error(model, [task]), size, packed_size(model))


def one_bit(seeds: tuple[int, ...], report: Report) -> Result:
    """The largest of the three figures, each as a share of its bar."""
    found = each(ARMS, seeds, train, report, tasks=TASKS)
    errors = {name: found.of(name, "error") for name in found.arms}  # (tasks, seeds) each
    ratios = errors[ONE] / errors[SAME_BYTES]
    ratio = float(np.median(ratios, axis=1).max())
    points = float(np.median(100 * (errors[ONE] - errors[SAME_WIDTH]), axis=1).max())
    off = max(abs(made.size / made.formula - 1) for made in found.results.values())
    note = (
        f"Error of one bit at width 32 over that of floats at width 1: {ratio:.2f} (bar {RATIO}); "
        f"points lost to floats at width 32: {points:+.2f} (bar {POINTS}); file size off the "
        f"formula by {100 * off:.1f} % (bar {100 * BYTES:.0f} %). Medians of {len(seeds)} seeds, "
        "the worse of the two tasks. Bytes are those of the weights, float head included; their "
        "settings are a JSON file beside it."
    )
    values = tuple(ratios.mean(0).tolist())
    got = max(ratio / RATIO, points / POINTS, off / BYTES)
    rows = tuple(row(found, name) for name in found.arms)
    return Result(got, deviation(values) / RATIO, values, rows, note)


def row(found: Sheet[str, Any, BiRun], name: str) -> dict[str, Any]:
    """One line of the table: error by task, median and range, and bytes."""
    line: dict[str, Any] = {"adapter": name}
    for task in TASKS:
        errors = sorted(made.error for made in found.by_seed(name, task))
        line[f"{task}, error"] = (
            f"{statistics.median(errors):.3f} ({errors[0]:.3f} ... {errors[-1]:.3f})"
        )
    made = found.by_seed(name, TASKS[-1])[-1]
    return line | {"file": f"{made.size} B", "formula": f"{made.formula} B"}


CLAIMS = (
    Claim(
        "bi",
        system="Bi adapters",
        sentence="Bits are better spent on width than on floats: an adapter of one bit per weight "
        "has at most 0.6 of the error of a float adapter of as many bytes, loses at most 1.5 "
        "points to floats of the same width, and its file has the size of its bits, within 2 % "
        "(arXiv:2307.16867, abstract).",
        baseline="float adapters of width 1 and 32; the largest of the three figures, each as a "
        "share of its bar",
        bar=1.0,
        sense="<=",
        run=one_bit,
        minutes=6,
    ),
)
