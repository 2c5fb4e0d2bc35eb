"""MoS against LoRA, PiSSA and DoRA of as many parameters, and plainer ways to share (ViT-S)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from intarsia.adapters import Mos
from intarsia.core import Method
from intarsia.core.change import Change
from intarsia.reports.sheet import deviation
from intarsia.train import Training

from ..kit import Effect, Report, Result, Study, UnknownEffect, above
from ..kit.arms import result_of
from ..materials import low_rank
from ..materials.low_rank import LINEAR, PEFT, Found, OnPictures, by_peft, less_the_best, parameters
from ..materials.picture_cells import Budget

FIRST = 8  # of twelve blocks; the four from there on are adapted
BUDGET = Budget("400 images", images=400, epochs=5)
BASE = Training(weight_decay=0.0, batch_size=16, precision="bf16")  # each arm has its own rate
RANKS = (1, 2, 4, 8, 16)  # from e to eight times e, the paper's saving
# e is the rank of a LoRA with as many parameters
E = 2  # the equivalent rank at which ways to share, PiSSA and DoRA are compared

Adapters = Mapping[str, Method | Change]
LORA: Mapping[int, str] = {rank: f"LoRA, rank {rank}" for rank in RANKS}
MOS: Mapping[int, str] = {1: "MoS, e 1, rank 4", 2: "MoS, e 2, rank 5", 4: "MoS, e 4, rank 12"}
SUBSET, POOL = "subsets only, e 2, rank 5", "one LoRA for all layers, rank 8"

share = partial(Mos, roles=LINEAR)
METHODS: Adapters = {
    **{LORA[rank]: by_peft("LoRA", rank) for rank in RANKS},
    **{f"{kind}, rank {E}": by_peft(kind, E) for kind in PEFT[1:]},
    # four layers of a kind: at e = 1 there is no private part, at e = 2 the rank is at most 5
    MOS[1]: share(4, 1, 4, 0),
    MOS[2]: share(5, 2, 4, 1),
    MOS[4]: share(12, 4, 4, 1),
    # ablations, plainer each: no shards, no pairs apart, no private part
    SUBSET: share(5, 2, 1, 0, dissociate=False),
    POOL: share(8, 2, 1, 0, dissociate=False),  # every layer has all of the pool
}


STUDY = OnPictures(METHODS, BASE, FIRST, BUDGET)
RIVALS = tuple(f"{kind}, rank {E}" for kind in PEFT)
RANKED = (*LORA.values(), *MOS.values())
EQUAL, SHARING = (LORA[E], MOS[E]), (MOS[E], SUBSET, POOL)


def errors(sheet: Found) -> dict[str, np.ndarray]:
    """Return each adapter's error by seed, (seeds,): the mean over the picture sets, in percent."""
    return {name: 100 - sheet.of(name, "accuracy").mean(0) for name in sheet.arms}


def matching_rank(error: float, ranks: Sequence[int], errors: Sequence[float]) -> float:
    """Return the rank at which LoRA would have a given error, by interpolation in log rank.

    error: in percent; ranks: of the LoRAs measured, rising; errors: of these LoRAs. Beyond the
    ranks that were measured it is the first or the last one.
    """
    # errors should fall with the rank; where they do not, the first crossing counts
    points = list(zip(ranks, errors, strict=True))
    if error >= points[0][1]:
        return float(points[0][0])
    for (low, worse), (high, better) in zip(points, points[1:], strict=False):
        if worse >= error >= better and worse > better:
            share = (worse - error) / (worse - better)
            return low * (high / low) ** share
    return float(ranks[-1])


def rows_of(sheet: Found) -> tuple[dict[str, Any], ...]:
    """Return the table's rows: each adapter's trained parameters, and its accuracy on each set.

    sheet: scores by adapter, data set and seed.
    """
    return low_rank.rows_of(sheet, "parameters", lambda name: parameters(METHODS[name], FIRST))


SETTING = (
    f"ViT-S at 56 px, every linear map of its last {12 - FIRST} blocks adapted, the head trained; "
    f"{BUDGET.images} pictures drawn for each seed, {BUDGET.epochs} epochs of batches of "
    f"{BASE.batch_size}, each adapter's rate chosen on validation pictures; scored on pictures "
    "that no choice was made on."
)


def with_as_many(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the accuracy of MoS minus that of LoRA of as many parameters, in points, by seed.

    MoS builds the low-rank matrices of all layers from shards of one shared pool. Both adapt the
    last four blocks of a ViT-S to small picture sets, each at its own rate; the mean over the sets.
    """
    sheet, rates = STUDY.measure(EQUAL, seeds, report)
    gain = (sheet.of(MOS[E], "accuracy") - sheet.of(LORA[E], "accuracy")).mean(0)  # (seeds,)
    return result_of(gain.tolist(), rows_of(sheet), SETTING, rates=rates)


def against_lora(seeds: tuple[int, ...], report: Report) -> Result:
    """Return how many times fewer parameters MoS needs than LoRA for the same error, by seed.

    MoS builds the low-rank matrices of all layers from shards of one shared pool. A MoS with the
    parameters of a rank-e LoRA is compared with LoRAs of ranks 1 to 16: the saving is the LoRA rank
    of the same error, over e; judged at e = 2. All adapt the last four blocks of a ViT-S to small
    picture sets.
    """
    sheet, rates = STUDY.measure(RANKED, seeds, report)
    wrong = errors(sheet)
    curves = np.array([wrong[LORA[rank]] for rank in RANKS])  # (ranks, seeds)

    def saved(e: int) -> list[float]:
        """Return the saving of each seed at equivalent rank e."""
        ours = zip(wrong[MOS[e]], curves.T, strict=True)
        return [matching_rank(float(error), RANKS, lora.tolist()) / e for error, lora in ours]

    # equal parameters: MoS of e against LoRA of rank e
    ratios = {e: float((wrong[name] / wrong[LORA[e]]).mean()) for e, name in MOS.items()}
    note = (
        f"{SETTING} Error over that of LoRA with as many parameters: "
        + ", ".join(f"{ratio:.2f} at e = {e}" for e, ratio in ratios.items())
        + ". Saving factor: "
        + ", ".join(f"{statistics.mean(saved(e)):.1f}x at e = {e}" for e in MOS)
        + f" (of ranks up to {RANKS[-1]}). {12 - FIRST} layers share a pool, the paper's 32: a "
        f"saving of at most {12 - FIRST}."
    )
    return result_of(saved(E), rows_of(sheet), note, rates=rates)


def against_peft(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the accuracy of MoS minus that of the best of LoRA, PiSSA and DoRA, in points.

    All have about as many parameters and adapt the last blocks of a ViT-S to small picture sets,
    each at its own rate. One difference for each seed.
    """
    sheet, rates = STUDY.measure((*RIVALS, MOS[E]), seeds, report)
    # the strongest of three rivals, by its mean over sets and seeds
    values, words = less_the_best(sheet, MOS[E], RIVALS, "MoS")
    note = f"{SETTING} {words} DoRA has its magnitudes beside the rank."
    return result_of(values, rows_of(sheet), note, rates=rates)


def orders(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the smaller of two gaps in accuracy between three ways to share parameters, in points.

    The gaps are MoS minus a version that only draws subsets of a pool, and that version minus one
    LoRA whose matrices all layers have. One value for each seed; the figure is the smaller of both
    mean gaps. Positive: each step of the method helps.
    """
    sheet, rates = STUDY.measure(SHARING, seeds, report)
    wrong = errors(sheet)
    # each differentiation must help: the smaller of both gaps is judged
    gaps = wrong[SUBSET] - wrong[MOS[E]], wrong[POOL] - wrong[SUBSET]  # by seed
    first, second = (float(gap.mean()) for gap in gaps)
    values = tuple(np.minimum(*gaps).tolist())
    budget = statistics.mode(parameters(METHODS[n], FIRST) for n in sheet.arms)
    note = (
        f"{SETTING} MoS above subsets only: {first:+.2f} points; subsets only above one LoRA for "
        f"all layers: {second:+.2f} points, means of the seeds; {budget:,} parameters each."
    )
    figure, spread = min(first, second), deviation(values)
    return Result(figure, spread, values, rows_of(sheet), note, rates=rates)


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
        scale=(
            "A model of 7 billion weights with instructions, of whose 32 layers all share a pool: "
            "here four do, so that at most a quarter of the parameters can do the same work."
        ),
        effect=Effect(8.0, "abstract: about 8 times fewer parameters, LLaMA2-7B", null=1.0),
        work="ViT-S, solar cells and turned photographs",
        sentence="On photographs LoRA needs at least twice the parameters of MoS in a pretrained "
        f"ViT-S for the same error ({PAPER}abstract).",
        baseline="LoRA of ranks 1 to 16 by PEFT; the rank of the same error over e = 2",
        target=2.0,
        measure=against_lora,
        rates=STUDY.rates(RANKED),
        minutes=25,
    ),
    study(
        "mos",
        effect=UnknownEffect(
            "The abstract counts parameters, about 8 times fewer in LLaMA2-7B; points of accuracy "
            "at equal parameters were not found."
        ),
        sentence="Low-rank changes put together from shards of one pool are more accurate than "
        "LoRA of as many parameters: photographs, a pretrained ViT-S (arXiv:2410.00938, of which "
        "this is not the headline: the abstract counts the parameters that LoRA needs).",
        baseline="LoRA of rank 2 by PEFT; points of accuracy, the mean of two sets",
        target=0.0,
        measure=with_as_many,
        rates=STUDY.rates(EQUAL),
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
        rates=STUDY.rates((*RIVALS, MOS[E])),
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
