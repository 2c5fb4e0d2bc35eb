"""Adapters of one bit against floats of as many bytes, and of as many weights (ViT-S)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any

from intarsia.adapters import Bottleneck
from intarsia.core import Method
from intarsia.core.change import Change
from intarsia.folders.out.pack import pack, packed_size
from intarsia.folders.verbs import adapt
from intarsia.methods import BiAdapter
from intarsia.train import Training

from ..kit import ArmRate, Effect, Report, Result, Study
from ..kit.arms import result_of
from ..materials import low_rank
from ..materials.low_rank import PEFT, Found, OnPictures, by_peft, parameters
from ..materials.picture_cells import Budget
from ..materials.tails import bare_tail

FIRST = 9  # of twelve blocks; the three from there on are adapted
# 375 steps; a published run has 1,600, and after 125 even the floats had not converged
BUDGET = Budget("400 images", images=400, epochs=15)
BASE = Training(weight_decay=0.0, batch_size=16, precision="bf16")  # each arm has its own rate
# floats of width 32 on validation pictures of turned photographs: the best of 0.1, 1 and 4, with
# 40.7, 48.1 and 46.0 % right
SCALE = 1.0
WIDTH = 32


def adapter(width: int, bits: int, codebook: str = "median") -> BiAdapter:
    """Return a bottleneck adapter with its weights stored as codes of `bits` bits each.

    width: of the bottleneck, its hidden units; bits: 1 or 2, or 32 for plain floats; codebook: how
    the values that the codes stand for are chosen, "median" or "lloyd" (Lloyd's k-means).
    """
    # one scale for all arms, so that they differ in bits and width alone
    over = Bottleneck(width, norm="none", scale=SCALE)
    return BiAdapter(over, bits=bits, codebook=codebook)


# 32 one-bit weights take the bytes of one float
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
PAIR = (ONE, SAME_BYTES)


STUDY = OnPictures(METHODS, BASE, FIRST, BUDGET)


def sizes(method: BiAdapter, classes: int = 4) -> tuple[int, int]:
    """Return the bytes of an adapter: of its packed file, and by the formula, with a float head.

    method: the adapter, on the last three blocks of a ViT-S; classes: outputs of the head. The
    model need not be trained, since training changes neither number.
    """
    model = adapt(bare_tail(FIRST, classes), method)
    with tempfile.TemporaryDirectory() as folder:
        return pack(model, folder).stat().st_size, packed_size(model)


def weight_bytes(name: str) -> int:
    """Return the bytes of an adapter as it is stored, without the classification head.

    name: key of METHODS: adapters of coded weights (CODED), or PEFT's methods at rank 1 (RIVALS).
    """
    if name in RIVALS:
        # PEFT's adapters are float32, of four bytes a number
        return 4 * parameters(RIVALS[name], FIRST)
    # two numbers of classes tell the head's share from the adapter's
    formulas = [sizes(CODED[name], classes)[1] for classes in (2, 4)]
    head = 4 * (384 + 1)  # of a class
    assert formulas[1] - formulas[0] == 2 * head
    return formulas[0] - 2 * head


def rows_of(sheet: Found) -> tuple[dict[str, Any], ...]:
    """Return the table's rows: each adapter's bytes without the head, and its accuracy on each set.

    sheet: scores by adapter, data set and seed.
    """
    return low_rank.rows_of(sheet, "bytes", weight_bytes)


SETTING = (
    f"ViT-S at 56 px, bottlenecks beside the MLPs of its last {12 - FIRST} blocks, a float head; "
    f"{BUDGET.images} pictures drawn for each seed, {BUDGET.epochs} epochs of batches of "
    f"{BASE.batch_size}, scale {SCALE:g} for all, each adapter's rate chosen on validation "
    "pictures; scored on pictures that no choice was made on."
)


def one_bit(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the error of one-bit adapters over the error of float adapters of as many bytes.

    Both adapt the last three blocks of a pretrained ViT-S to small sets of pictures; the one-bit
    adapter has width 32, the float one width 1. The error is 100 minus the accuracy in percent. One
    ratio for each seed, the mean over the two sets; below 1 the one-bit adapter errs less.
    """
    sheet, rates, words = coded(PAIR, seeds, report)
    # (sets, seeds) of each arm
    errors = {name: 100 - sheet.of(name, "accuracy") for name in PAIR}
    ratios = (errors[ONE] / errors[SAME_BYTES]).mean(0)  # (seeds,)
    return result_of(ratios.tolist(), rows_of(sheet), words, rates=rates)


def coded(
    names: tuple[str, ...], seeds: tuple[int, ...], report: Report
) -> tuple[Found, tuple[ArmRate, ...], str]:
    """Train adapters of coded weights; return scores, learning rates, and a text on the setting.

    names: of CODED. The scores are by adapter, picture set and seed; each adapter's rate is chosen
    on validation pictures.
    """
    # bytes are compared: all arms of this table are coded by one format
    sheet, rates = STUDY.measure(names, seeds, report)
    # a file is as large as its bits, or "as many bytes" means nothing
    off = max(abs(size / formula - 1) for size, formula in map(sizes, CODED.values()))
    return sheet, rates, f"Files are within {100 * off:.1f} % of the size of their bits. {SETTING}"


STUDIES = (
    Study(
        "bi",
        system="Bi adapters",
        arxiv="2307.16867",
        question="Does a wide adapter of one bit err less than floats of equal bytes?",
        effect=Effect(
            "77.0 at 212.9 KB, 73.8 at 6.8 KB; prompts 72.0, full training 68.9",
            "ViT-B/16, mean of VTAB-1k",
            "official repository",
            sign=-1,
            null=1.0,
        ),
        work="ViT-S, solar cells and turned photographs",
        baseline="a float adapter of width 1, as many bytes as 32 of one bit; ratio of errors",
        unit="times the float adapter's errors",
        differs="The paper has no float adapter of equal bytes in its tables.",
        measure=one_bit,
        seeds=tuple(range(8)),
        minutes=20,
    ),
)
