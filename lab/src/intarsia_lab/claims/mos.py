"""MoS against LoRA, PiSSA and DoRA of as many parameters, and plainer ways to share (ViT-S)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from intarsia.adapters import Mos
from intarsia.core import Method
from intarsia.core.change import Change
from intarsia.reports.sheet import deviation
from intarsia.train import Training

from ..kit import Control, Report, Result, Study, UnknownEffect, above, numbers
from ..kit.arms import result_of
from ..kit.control import Rows
from ..materials import low_rank
from ..materials.low_rank import LINEAR, PEFT, Found, OnPictures, by_peft, less_the_best, parameters
from ..materials.picture_cells import Budget

FIRST = 8  # of twelve blocks; the four from there on are adapted
BUDGET = Budget("400 images", images=400, epochs=5)
# all of a set but the test's 40 %: on 400 an eighth of the parameters loses next to nothing
ALL = Budget("1,296 images", images=1296, epochs=6)
BASE = Training(weight_decay=0.0, batch_size=16, precision="bf16")  # each arm has its own rate
# e is the rank of a LoRA with as many parameters
E = 2  # the equivalent rank at which ways to share, PiSSA and DoRA are compared
TIMES = 8  # so many times its parameters has the LoRA that MoS is as good as, says the paper
TIE = 1.0  # points that are no loss; the margin is ours

Adapters = Mapping[str, Method | Change]
LORA, MOS = f"LoRA, rank {E}", f"MoS, e {E}, rank 5"
SUBSET, POOL = "subsets only, e 2, rank 5", "one LoRA for all layers, rank 8"
LARGE, PUBLISHED = f"LoRA, rank {TIMES * E}", f"MoS, e {E}, rank 8"

share = partial(Mos, roles=LINEAR)
METHODS: Adapters = {
    **{f"{kind}, rank {E}": by_peft(kind, E) for kind in PEFT},
    # of four layers of a kind: the rank is at most 5
    MOS: share(5, E, 4, 1),
    # ablations, plainer each: no shards, no pairs apart, no private part
    SUBSET: share(5, 2, 1, 0, dissociate=False),
    POOL: share(8, 2, 1, 0, dissociate=False),  # every layer has all of the pool
}
SAVING: Adapters = {
    LARGE: by_peft("LoRA", TIMES * E),
    # the loss with an eighth of the parameters and nothing shared
    LORA: by_peft("LoRA", E),
    PUBLISHED: share(8, E, 4, 1),
}


STUDY = OnPictures(METHODS, BASE, FIRST, BUDGET)
# eight blocks share: with four, all that they hold together is four times the rank e, not eight
EIGHT = OnPictures(SAVING, BASE, 4, ALL, ("photo-rotation",))
RIVALS = tuple(f"{kind}, rank {E}" for kind in PEFT)
SHARING = (MOS, SUBSET, POOL)


def errors(sheet: Found) -> dict[str, np.ndarray]:
    """Return each adapter's error by seed, (seeds,): the mean over the picture sets, in percent."""
    return {name: 100 - sheet.of(name, "accuracy").mean(0) for name in sheet.arms}


def rows_of(sheet: Found, study: OnPictures) -> tuple[dict[str, Any], ...]:
    """Return the table's rows: each adapter's trained parameters, and its accuracy on each set.

    sheet: scores by adapter, data set and seed; study: has the adapters.
    """
    return low_rank.rows_of(
        sheet, "parameters", lambda name: parameters(study.methods[name], study.first)
    )


def setting(study: OnPictures) -> str:
    """Return the sentence on the training, for the note.  study: has the adapted blocks."""
    budget = study.budget
    return (
        f"ViT-S at 56 px, every linear map of its last {12 - study.first} blocks adapted, the head "
        f"trained; {budget.images:,} pictures, drawn for each seed where a set has more, "
        f"{budget.epochs} epochs of batches of {BASE.batch_size}, each adapter's rate chosen on "
        "validation pictures; scored on pictures that no choice was made on."
    )


def with_as_many(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the accuracy of MoS minus LoRA's with as many parameters, in points, by seed.

    Both adapt the last four blocks of a ViT-S, see `_last_over_first`.
    """
    return _last_over_first(STUDY, (LORA, MOS), seeds, report)


def with_an_eighth(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the accuracy of MoS minus LoRA's with eight times its parameters, by seed.

    In points; both adapt the last eight blocks of a ViT-S, see `_last_over_first`. LoRA of as many
    parameters as MoS stands in the table, for the control.
    """
    return _last_over_first(EIGHT, tuple(SAVING), seeds, report)


def _last_over_first(
    study: OnPictures, names: tuple[str, ...], seeds: tuple[int, ...], report: Report
) -> Result:
    """Return the accuracy of the last of some adapters minus the first's, in points, by seed."""
    sheet, rates = study.measure(names, seeds, report)
    gain = (sheet.of(names[-1], "accuracy") - sheet.of(names[0], "accuracy")).mean(0)  # (seeds,)
    return result_of(gain.tolist(), rows_of(sheet, study), setting(study), rates=rates)


def against_peft(seeds: tuple[int, ...], report: Report) -> Result:
    """Return MoS's accuracy minus the accuracy of the best of LoRA, PiSSA and DoRA, in points.

    All have about as many parameters and adapt the last blocks of a ViT-S to small picture sets,
    each at its own rate. One difference for each seed.
    """
    sheet, rates = STUDY.measure((*RIVALS, MOS), seeds, report)
    # the strongest of three rivals, by its mean over sets and seeds
    values, words = less_the_best(sheet, MOS, RIVALS, "MoS")
    note = f"{setting(STUDY)} {words} DoRA has its magnitudes beside the rank."
    return result_of(values, rows_of(sheet, STUDY), note, rates=rates)


def orders(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the smaller of two gaps in accuracy between three ways to share parameters, in points.

    The gaps are MoS minus a version that only draws subsets of a pool, and that version minus one
    LoRA with the same matrices in all layers. One value for each seed; the figure is the smaller
    of both mean gaps. Positive: each step of the method helps.
    """
    sheet, rates = STUDY.measure(SHARING, seeds, report)
    wrong = errors(sheet)
    # each differentiation must help: the smaller of both gaps is judged
    gaps = wrong[SUBSET] - wrong[MOS], wrong[POOL] - wrong[SUBSET]  # by seed
    first, second = (float(gap.mean()) for gap in gaps)
    values = tuple(np.minimum(*gaps).tolist())
    budget = statistics.mode(parameters(METHODS[n], FIRST) for n in sheet.arms)
    note = (
        f"{setting(STUDY)} MoS above subsets only: {first:+.2f} points; subsets only above one "
        f"LoRA for all layers: {second:+.2f}, means of the seeds; {budget:,} parameters each."
    )
    figure, spread = min(first, second), deviation(values)
    return Result(figure, spread, values, rows_of(sheet, STUDY), note, rates=rates)


def points(rows: Rows, name: str) -> float:
    """Return an adapter's accuracy in percent, the mean over the sets.  rows: of the table."""
    return statistics.mean(numbers(rows, f"{s}, %", {"adapter": name})[0] for s in EIGHT.sets)


PAPER = "arXiv:2410.00938, "

study = partial(
    Study,
    sense=">=",
    control=above(
        "The adapters see which way a picture is turned: above chance, 25 %, by 10 points.",
        "photo-rotation, %",
        35,
    ),
)

CLAIMS = (
    study(
        "mos-saving",
        system="MoS",
        unit="points of accuracy",
        scale="A model of 7 billion weights with instructions: its 32 layers share a pool.",
        effect=UnknownEffect(
            "The abstract counts parameters, about 8 times fewer in LLaMA2-7B, which is the "
            "comparison; points of accuracy were not found. The margin of a point is ours."
        ),
        work="ViT-S, turned photographs",
        sentence="Where layers share them, an eighth of the parameters is enough: MoS loses at "
        "most a point to LoRA of eight times its parameters: photographs, a pretrained ViT-S "
        f"({PAPER}abstract).",
        baseline="LoRA of rank 16 by PEFT; points of accuracy",
        target=-TIE,
        measure=with_an_eighth,
        control=Control(
            "LoRA of as few parameters as MoS loses more than a point: they are needed.",
            lambda rows: points(rows, LARGE) - points(rows, LORA) > TIE,
        ),
        rates=EIGHT.rates(tuple(SAVING)),
        # with a spread of 1.0, as mos has, eight seeds see 1.2 points
        seeds=tuple(range(8)),
        minutes=40,
    ),
    study(
        "mos",
        effect=UnknownEffect(
            "The abstract counts parameters, about 8 times fewer in LLaMA2-7B; points of accuracy "
            "at equal parameters were not found."
        ),
        sentence="Low-rank changes put together from shards of one pool are more accurate than "
        "LoRA of as many parameters: photographs, a pretrained ViT-S (arXiv:2410.00938; this is "
        "not its headline: the abstract counts the parameters that LoRA needs).",
        baseline="LoRA of rank 2 by PEFT; points of accuracy, the mean of two sets",
        target=0.0,
        measure=with_as_many,
        rates=STUDY.rates((LORA, MOS)),
        # the pilot is mos-peft: a spread of .74 points, so that twelve seeds see .7 of them
        seeds=tuple(range(12)),
        minutes=16,
    ),
    study(
        "mos-peft",
        sentence="With as many parameters MoS is at least as accurate as LoRA, PiSSA and DoRA: "
        f"photographs, a pretrained ViT-S ({PAPER}section on results).",
        baseline="the most accurate of PEFT's LoRA, PiSSA and DoRA of rank 2; points of accuracy",
        target=0.0,
        measure=against_peft,
        rates=STUDY.rates((*RIVALS, MOS)),
        minutes=6,
    ),
    study(
        "mos-order",
        sentence="Each differentiation of what is shared helps: MoS is at least as accurate as "
        "subset selection, and that as one LoRA of as many parameters shared by all layers: "
        f"photographs, a pretrained ViT-S ({PAPER}section on ablations).",
        baseline="the next plainer way to share, e = 2, equally many parameters; the smaller gap "
        "in points",
        target=0.0,
        measure=orders,
        rates=STUDY.rates(SHARING),
        minutes=5,
    ),
)
