"""MoSA against the adapter it splits, and against the other ways to make that adapter noisy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from intarsia.adapters import Bottleneck
from intarsia.methods import Adamix, DropConnect, Mosa, Official
from intarsia.reports.sheet import Differences, Sheet
from intarsia.reports.statistics import t_interval
from intarsia.runs.pool import Arm
from intarsia.train import Training
from intarsia.train.objectives import two_pass

from ..kit import Effect, Report, Result, Study
from ..kit.arms import result_of, shown
from ..materials.picture_cells import Budget, PictureCells, StudyRecipe, StudyScore

SCARCE = Budget("scarce", images=100, epochs=40)
AMPLE = Budget("ample", images=500, epochs=5)
SETS = ("fashion-mnist", "elpv", "tuxpaint")
BASE = Training(lr=5e-3, weight_decay=0.01, batch_size=32, precision="bf16")

# the blocks below are frozen and computed once: a run costs 16 CPU seconds
LAST_THREE = 9  # of twelve blocks the first one that is adapted

plain = partial(Bottleneck, 16, activation="gelu")
rdrop = partial(two_pass, add=1.0)
# one draw for a batch and the paper's scaling, as in the released code
published = Mosa(over=plain(dropout=0.1), draw="batch", scaling="paper")


def official(budget: Budget, **settings: Any) -> Official:
    """Return MoSA's released training recipe at a budget.

    A tenth of the epochs warms the rate up, from 0 in the first. The trunk has no dropout, since
    its frozen half is computed once. budget: numbers of images and epochs; settings: of `Official`,
    instead of the defaults.
    """
    # the released schedule: a cosine by epochs, with a rate of 0 in the first one
    recipe: dict[str, Any] = {
        "lr": BASE.lr,
        "epochs": budget.epochs,
        "warmup_epochs": max(1, budget.epochs // 10),
        "batch_size": BASE.batch_size,
    }
    return Official(16, **(recipe | settings))


def arm(name: str, *recipe: Any, **options: Any) -> Arm[StudyRecipe]:
    """Return an arm of the comparison.

    name: in the table; recipe, options: fields of StudyRecipe: the method, and how it is trained.
    """
    return Arm(name, StudyRecipe(*recipe, **options))


def released(name: str, **settings: Any) -> Arm[StudyRecipe]:
    """Return the released recipe as an arm.

    name: in the table; settings: of `Official`, such as experts=1 for the adapter left whole.
    """

    def options(budget: Budget) -> dict[str, Any]:
        """Return the optimiser and the course of the rate at a budget."""
        recipe = official(budget, **settings)
        return {"optimizer": recipe.optimizer, "lr_factor": recipe.lr_factor}

    # two passes a step with a consistency loss, as in the released code
    return arm(
        name,
        lambda budget: official(budget, **settings).method,
        partial(two_pass, **Official().objective),
        options=options,
    )


ADAPTER = arm("adapter", lambda _: plain())
MOSA = arm("MoSA", lambda b: Mosa.for_budget(b.images, b.epochs, over=plain()))
ARMS = (
    ADAPTER,
    MOSA,
    # a fourth of the adapter is trained at a time: is it the smaller change that helps?
    arm("adapter, scale / N", lambda _: plain(scale=0.1 / 4)),
    arm("adapter, DropConnect", lambda _: DropConnect(plain(), p=0.75)),
    arm("adapter, R-Drop", lambda _: plain(dropout=0.1), rdrop),
    # two passes a step cost twice as much, so that half of the epochs is equal cost
    arm("adapter, R-Drop, half the epochs", lambda _: plain(dropout=0.1), rdrop, epochs=0.5),
    arm("AdaMix", lambda _: Adamix(over=plain(dropout=0.1)), two_pass),
    arm("AdaMix, half the epochs", lambda _: Adamix(over=plain(dropout=0.1)), two_pass, epochs=0.5),
    arm("MoSA as published", lambda _: published, two_pass),
    arm("MoSA as published, half the epochs", lambda _: published, two_pass, epochs=0.5),
    released("MoSA, official recipe"),
)


def gain(
    seeds: Sequence[int],
    report: Report,
    *,
    arms: Sequence[Arm[StudyRecipe]],
    budgets: Sequence[Budget],
    sets: Sequence[str] = SETS,
) -> Result:
    """Train adapters on small picture sets; return MoSA's gain in accuracy over the plain adapter.

    MoSA splits an adapter into four disjoint parts and trains one at a time. arms: the adapters of
    the table; budgets: numbers of images and epochs, the scarce one is judged; sets: names of
    picture sets. The values are the differences in percentage points, one for each set and seed.
    """
    cells = PictureCells(base=BASE)
    sheets = cells.sheets(arms, budgets, sets, seeds, report)
    gained = sheets[SCARCE.name].minus(MOSA.name, ADAPTER.name, "accuracy")
    assert gained is not None
    rows = [row(sheets[budget.name], budget, arm, ADAPTER) for budget in budgets for arm in arms]
    return over_sets(gained, rows, cost(sheets))


def published_gain(
    seeds: Sequence[int],
    report: Report,
    *,
    budget: Budget = SCARCE,
    sets: Sequence[str] = SETS,
    first: int = LAST_THREE,
) -> Result:
    """Return the gain in accuracy of MoSA as released over its own adapter left whole.

    Both are trained by the released recipe, two passes a step, at the published rate. budget:
    numbers of images and epochs; sets: names of picture sets; first: the first block of the ViT-S
    that is adapted. The values are differences in percentage points, one for each set and seed.
    """
    # the paper's own adapter by the paper's own recipe, not a plain one with a single pass
    adapter = released("adapter, released recipe", experts=1)
    split = released("MoSA, released recipe")
    cells = PictureCells(base=BASE, first=first)
    sheets = cells.sheets((adapter, split), (budget,), sets, seeds, report)
    sheet = sheets[budget.name]
    # pairs (set, seed): both arms see the same pictures in the same order
    gained = sheet.minus(split.name, adapter.name, "accuracy")
    assert gained is not None
    rows = [row(sheet, budget, arm, adapter) for arm in (adapter, split)]
    return over_sets(gained, rows, cost(sheets))


def over_sets(gained: Differences, rows: Sequence[Mapping[str, Any]], words: str) -> Result:
    """Return paired differences (set, seed) as a result whose interval is over the sets.

    gained: in percentage points; rows: of the table; words: of the note.
    """
    low, high = gained.t_interval
    note = (
        f"Over {gained.n} pairs (set, seed), as if sets were all there are: {gained.mean:+.2f} "
        f"points, {low:+.2f} to {high:+.2f}. {words}"
    )
    # sets differ by more than seeds do: their means are the sample
    by_set = t_interval(gained.pairs.mean(1).tolist())
    return replace(result_of(gained.known.tolist(), rows, note), items=by_set)


def cost(sheets: Mapping[str, Sheet[str, str, StudyScore]]) -> str:
    """Return a sentence on the CPU hours of all training runs.  sheets: scores of each budget."""
    seconds = [score.cpu for sheet in sheets.values() for score in sheet.results.values()]
    return f"{sum(seconds) / 3600:.1f} CPU hours of training in {len(seconds)} runs."


def row(
    sheet: Sheet[str, str, StudyScore],
    budget: Budget,
    arm: Arm[StudyRecipe],
    base: Arm[StudyRecipe],
) -> dict[str, Any]:
    """Return a row of the table: accuracy by set, gain over a base adapter, relative CPU time.

    sheet: scores of all arms; budget: of the row; arm: of the row; base: the adapter that it is
    compared with, in pairs (set, seed).
    """
    words = f"{budget.images} images x {budget.epochs} epochs"
    line: dict[str, Any] = {"budget": words, "method": arm.name}
    for name, values in zip(sheet.tasks, sheet.of(arm.name, "accuracy"), strict=True):
        line[name] = shown(values.tolist(), ".1f")
    gain = sheet.minus(arm.name, base.name, "accuracy")
    assert gain is not None
    line["minus adapter"] = "" if arm is base else f"{gain.mean:+.2f} ± {gain.half_width:.2f}"
    cost = sheet.of(arm.name, "cpu") / sheet.of(base.name, "cpu")
    line["CPU time"] = f"{np.median(cost):.2f}x"
    return line


study = partial(Study, system="MoSA", arxiv="2312.02923", unit="points of accuracy")

STUDIES = (
    study(
        "mosa",
        question="Is a split adapter, trained as released, more accurate than the whole?",
        effect=Effect(
            "89.9 against 88.6 of AdaptFormer",
            "ViT-B/16, mean of the five sets of FGVC",
            "tables of DA-VPT and SNELL",
            sign=1,
            values=(1.3,),
        ),
        work="last three blocks of a ViT-S/14, 100 pictures of each of three sets",
        baseline="the same adapter whole, by the same released recipe with its two passes",
        differs="100 pictures of a set in place of thousands; the whole adapter has the two passes "
        "too, which AdaptFormer has not.",
        measure=published_gain,
        seeds=tuple(range(14)),
        minutes=64,
    ),
    study(
        "mosa-long",
        question="Is it by this library's defaults, next to other regularisers?",
        effect=None,
        work="last six blocks of a ViT-S/14, 100 and 500 pictures of each of three sets",
        baseline="the same adapter, not split, one pass",
        differs="`Mosa.for_budget`: a draw for each sample, one pass, no dropout.",
        measure=partial(gain, arms=ARMS, budgets=(SCARCE, AMPLE)),
        seeds=(0, 1, 2, 3, 4),
        minutes=150,
    ),
)
