"""Adapters of one bit against floats of as many bytes, and of as many weights (ViT-S)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from intarsia.adapters import Bottleneck
from intarsia.core import Method
from intarsia.core.change import Change
from intarsia.hosts import adapt, pack, packed_size
from intarsia.methods import BiAdapter
from intarsia.reports.sheet import deviation
from intarsia.train import Training

from ..kit import Report, Result, Study, above
from ..kit.arms import result_of
from ..materials import low_rank
from ..materials.low_rank import PEFT, Found, OnPictures, by_peft, less_the_best, parameters
from ..materials.picture_cells import Budget
from ..materials.tails import bare_tail

FIRST = 9  # of twelve blocks; the three from there on are adapted
BUDGET = Budget("400 images", images=400, epochs=5)
# floats of width 32 on validation pictures of turned photographs: the best of 0.1, 1 and 4 as the
# scale, 40.7, 48.1 and 46.0 % right, and of 1e-3 and 3e-3 as the rate, 46.9 and 48.1 %
BASE = Training(lr=3e-3, weight_decay=0.0, batch_size=16, precision="bf16")
SCALE = 1.0
RATIO, POINTS, BYTES = 0.6, 1.5, 0.02
WIDTH = 32


def adapter(width: int, bits: int, codebook: str = "median") -> BiAdapter:
    """Return a bottleneck of so many bits a weight."""
    over = Bottleneck(width, norm="none", scale=SCALE)
    return BiAdapter(over, bits=bits, codebook=codebook)


ONE, SAME_BYTES, SAME_WIDTH = "1 bit, width 32", "float, width 1", "float, width 32"
CODED: Mapping[str, BiAdapter] = {
    ONE: adapter(WIDTH, 1),
    SAME_BYTES: adapter(1, 32),
    SAME_WIDTH: adapter(WIDTH, 32),
    "1 bit, width 32, Lloyd": adapter(WIDTH, 1, "lloyd"),
    "2 bit, width 32": adapter(WIDTH, 2),
}
# rank 1 of 384 x 384 has the 768 floats of a bottleneck of width 1; DoRA has 384 more
RIVALS: Mapping[str, Change] = {
    f"{kind}, rank 1 of the projections": by_peft(kind, 1, ("projection",)) for kind in PEFT
}
METHODS: Mapping[str, Method | Change] = {**CODED, **RIVALS}


STUDY = OnPictures(METHODS, BASE, FIRST, BUDGET)


def sizes(method: BiAdapter, classes: int = 4) -> tuple[int, int]:
    """Return bytes of the packed file and by the formula, with a float head.

    Training changes neither.
    """
    model = adapt(bare_tail(FIRST, classes), method)
    with tempfile.TemporaryDirectory() as folder:
        return pack(model, folder).stat().st_size, packed_size(model)


def weight_bytes(name: str) -> int:
    """Return the bytes of an adapter as it is stored, without the head."""
    if name in RIVALS:
        return 4 * parameters(RIVALS[name], FIRST)
    formulas = [sizes(CODED[name], classes)[1] for classes in (2, 4)]
    head = 4 * (384 + 1)  # of a class
    assert formulas[1] - formulas[0] == 2 * head
    return formulas[0] - 2 * head


def rows_of(sheet: Found) -> tuple[dict[str, Any], ...]:
    """Return the table's rows, with the bytes of each adapter without the head."""
    return low_rank.rows_of(sheet, "bytes", weight_bytes)


SETTING = (
    f"ViT-S at 56 px, bottlenecks beside the MLPs of its last {12 - FIRST} blocks, a float head; "
    f"{BUDGET.images} pictures drawn for each seed, {BUDGET.epochs} epochs of batches of "
    f"{BASE.batch_size}, lr {BASE.lr:g} and scale {SCALE:g} for all, chosen on validation pictures "
    "with floats of width 32; scored on pictures that no choice was made on."
)


def one_bit(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the largest of the three figures, each as a share of its bar."""
    sheet = STUDY.measure(tuple(CODED), seeds, report)
    errors = {name: 100 - sheet.of(name, "accuracy") for name in sheet.arms}  # (sets, seeds) each
    ratios = errors[ONE] / errors[SAME_BYTES]
    ratio = float(np.median(ratios, axis=1).max())
    points = float(np.median(errors[ONE] - errors[SAME_WIDTH], axis=1).max())
    off = max(abs(size / formula - 1) for size, formula in map(sizes, CODED.values()))
    note = (
        f"Error of one bit at width {WIDTH} over that of floats at width 1: {ratio:.2f} (bar "
        f"{RATIO}); points lost to floats at width {WIDTH}: {points:+.2f} (bar {POINTS}); file "
        f"size off the formula by {100 * off:.1f} % (bar {100 * BYTES:.0f} %). Medians of "
        f"{len(seeds)} seeds, the worse of the {len(STUDY.sets)} sets. {SETTING}"
    )
    values = tuple(ratios.mean(0).tolist())
    got = max(ratio / RATIO, points / POINTS, off / BYTES)
    return Result(got, deviation(values) / RATIO, values, rows_of(sheet), note)


def against_peft(seeds: tuple[int, ...], report: Report) -> Result:
    """Return accuracy of one bit less that of the best of LoRA, PiSSA and DoRA, in points."""
    sheet = STUDY.measure((ONE, *RIVALS), seeds, report)
    values, words = less_the_best(sheet, ONE, tuple(RIVALS), "one bit")
    return result_of(values, rows_of(sheet), f"{SETTING} {words}")


PAPER = "(arXiv:2307.16867, abstract)"

study = partial(
    Study,
    control=above(
        "The adapters see which way a picture is turned: above chance, 25 %, by 10 points.",
        "photo-rotation, %",
        35,
    ),
    minutes=6,
)

CLAIMS = (
    study(
        "bi",
        system="Bi adapters",
        work="ViT-S, solar cells and turned photographs",
        sentence="Bits are better spent on width than on floats: in a pretrained ViT-S, an adapter "
        "of one bit per weight has at most 0.6 of the error of a float adapter of as many bytes, "
        "loses at most 1.5 points to floats of the same width, and its file has the size of its "
        f"bits, within 2 % {PAPER}.",
        baseline="float adapters of width 1 and 32; the largest of the three figures, each as a "
        "share of its bar",
        target=1.0,
        sense="<=",
        measure=one_bit,
    ),
    study(
        "bi-peft",
        sentence="With as many bytes an adapter of one bit per weight is at least as accurate as "
        f"LoRA, PiSSA and DoRA {PAPER}.",
        baseline="the most accurate of PEFT's three on the projections, rank 1; points of accuracy",
        target=0.0,
        sense=">=",
        measure=against_peft,
    ),
)
