"""Adapters of one bit against floats of as many bytes, and of as many weights (MIX6)."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..adapters import Bottleneck
from ..core import Claim, Result
from ..fitting import fit
from ..hosts import adapt, pack, packed_size
from ..methods import BiAdapter
from . import mix6
from .study import threads

TASKS = ("rotate", "flip")
STEPS, LR = 1500, 5e-3
# of 0.1, 1 and 4, tried on 240 of the training digits: the best of each of the first three arms
SCALE = 4.0
RATIO, POINTS, BYTES = 0.6, 1.5, 0.02


class Arm(NamedTuple):
    """One contender: width of the adapter, bits of its weights, the codebook."""

    width: int
    bits: int
    codebook: str = "median"

    @property
    def name(self) -> str:
        kind = "float" if self.bits == 32 else f"{self.bits} bit"
        return f"{kind}, width {self.width}" + (", Lloyd" if self.codebook == "lloyd" else "")


ONE, SAME_BYTES, SAME_WIDTH = Arm(32, 1), Arm(1, 32), Arm(32, 32)
ARMS = (ONE, SAME_BYTES, SAME_WIDTH, Arm(32, 1, "lloyd"), Arm(32, 2))
Errors = Mapping[tuple[str, str, int], float]


def train(arm: Arm, task: str, seed: int) -> tuple[float, int, int]:
    """Error on the test digits; bytes of the packed file and by the formula."""
    over = Bottleneck(arm.width, norm="none", scale=SCALE)
    method = BiAdapter(over, bits=arm.bits, codebook=arm.codebook)
    model = adapt(mix6.backbone(), method, targets=["mlp"], seed=seed)  # with a float head
    fit(
        model, mix6.data("train", [task]), epochs=mix6.epochs(STEPS, 1), batch_size=mix6.BATCH,
        lr=LR, seed=seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        size = pack(model, folder).stat().st_size
    return mix6.error(model, [task]), size, packed_size(model)


def worst(
    errors: Errors, seeds: Sequence[int], of: Callable[[float, float], float], to: Arm
) -> float:
    """The worse task's median over seeds of a comparison of one bit with another arm."""
    return max(
        statistics.median(of(errors[ONE.name, task, s], errors[to.name, task, s]) for s in seeds)
        for task in TASKS
    )


def compare(seeds: tuple[int, ...], report: Callable[[str], None]) -> Result:
    """The largest of the three figures, each as a share of its bar."""
    errors: dict[tuple[str, str, int], float] = {}
    sizes: dict[str, tuple[int, int]] = {}
    with threads(1):
        for seed in seeds:
            for task in TASKS:
                for arm in ARMS:
                    error, size, formula = train(arm, task, seed)
                    errors[arm.name, task, seed] = error
                    sizes[arm.name] = size, formula
                    report(f"{task}, seed {seed}, {arm.name}: error {error:.3f}, {size} bytes")
    ratio = worst(errors, seeds, lambda one, other: one / other, SAME_BYTES)
    points = worst(errors, seeds, lambda one, other: 100 * (one - other), SAME_WIDTH)
    off = max(abs(size / formula - 1) for size, formula in sizes.values())
    note = (
        f"Error of one bit at width 32 over that of floats at width 1: {ratio:.2f} (bar {RATIO}); "
        f"points lost to floats at width 32: {points:+.2f} (bar {POINTS}); file size off the "
        f"formula by {100 * off:.1f} % (bar {100 * BYTES:.0f} %). Medians of {len(seeds)} seeds, "
        "the worse of the two tasks. Bytes are those of the weights, float head included; their "
        "settings are a JSON file beside it."
    )
    each = [
        statistics.mean(errors[ONE.name, t, s] / errors[SAME_BYTES.name, t, s] for t in TASKS)
        for s in seeds
    ]
    spread = statistics.stdev(each) if len(each) > 1 else 0.0
    rows = [row(arm, errors, sizes, seeds) for arm in ARMS]
    got = max(ratio / RATIO, points / POINTS, off / BYTES)
    return Result(got, spread / RATIO, tuple(each), tuple(rows), note)


def row(
    arm: Arm, errors: Errors, sizes: Mapping[str, tuple[int, int]], seeds: Sequence[int]
) -> dict[str, Any]:
    """One line of the table: error by task, median and range, and bytes."""
    line: dict[str, Any] = {"adapter": arm.name}
    for task in TASKS:
        found = sorted(errors[arm.name, task, s] for s in seeds)
        line[f"{task}, error"] = (
            f"{statistics.median(found):.3f} ({found[0]:.3f} ... {found[-1]:.3f})"
        )
    size, formula = sizes[arm.name]
    return line | {"file": f"{size} B", "formula": f"{formula} B"}


CLAIMS = (
    Claim(
        "bi",
        sentence="Bits are better spent on width than on floats: an adapter of one bit per weight "
        "has at most 0.6 of the error of a float adapter of as many bytes, loses at most 1.5 "
        "points to floats of the same width, and its file has the size of its bits, within 2 % "
        "(arXiv:2307.16867, abstract).",
        baseline="float adapters of width 1 and 32; the largest of the three figures, each as a "
        "share of its bar",
        bar=1.0,
        sense="<=",
        run=compare,
        seeds=(0, 1, 2),
        minutes=6,
    ),
)
