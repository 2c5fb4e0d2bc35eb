"""MoS against LoRA, PiSSA and DoRA of as many parameters, and plainer ways to share (ViT-S)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from intarsia.adapters import Mos
from intarsia.core import Method
from intarsia.core.change import Change
from intarsia.train import Training

from ..kit import Effect, Report, Result, Study
from ..kit.arms import result_of
from ..materials import low_rank
from ..materials.low_rank import LINEAR, PEFT, Found, OnPictures, by_peft, parameters
from ..materials.picture_cells import Budget

FIRST = 8  # of twelve blocks; the four from there on are adapted
BUDGET = Budget("400 images", images=400, epochs=5)
# all of a set but the test's 40 %: on 400 an eighth of the parameters loses next to nothing
ALL = Budget("1,296 images", images=1296, epochs=6)
BASE = Training(weight_decay=0.0, batch_size=16, precision="bf16")  # each arm has its own rate
# e is the rank of a LoRA with as many parameters
E = 2  # the equivalent rank at which ways to share, PiSSA and DoRA are compared
TIMES = 8  # so many times its parameters has the LoRA that MoS is as good as, says the paper

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


study = partial(Study, system="MoS", arxiv="2410.00938", unit="points of accuracy")

STUDIES = (
    study(
        "mos-saving",
        question="Is MoS as accurate as LoRA with eight times its parameters?",
        effect=Effect(
            "about 8 times fewer parameters at equal quality",
            "LLaMA2-7B, five tests",
            "abstract",
            sign=0,
        ),
        work="the last eight blocks of a ViT-S, turned photographs",
        baseline="LoRA of rank 16 by PEFT, eight times the parameters",
        differs="Eight layers share a pool, where the paper has 32.",
        measure=with_an_eighth,
        seeds=tuple(range(8)),
        minutes=44,
    ),
    study(
        "mos",
        question="Is MoS more accurate than LoRA of as many parameters?",
        effect=None,
        work="ViT-S, solar cells and turned photographs",
        baseline="LoRA of rank 2 by PEFT, the mean of two sets",
        differs="Not its headline: the abstract counts the parameters that LoRA needs.",
        measure=with_as_many,
        seeds=tuple(range(12)),
        minutes=21,
    ),
)
