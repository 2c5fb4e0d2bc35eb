"""MoSA against the adapter it splits, and against the other ways to make that adapter noisy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..adapters import Bottleneck
from ..core import Claim, Result
from ..methods import Adamix, Mosa, Official
from ..train import Training
from ..train.objectives import two_pass
from .study import Arm, Budget, Study, paired, threads

SCARCE = Budget("scarce", images=100, epochs=40)
AMPLE = Budget("ample", images=500, epochs=5)
SETS = ("fashion-mnist", "elpv", "tuxpaint")
BASE = Training(lr=5e-3, weight_decay=0.01, batch_size=32, precision="bf16")

plain = partial(Bottleneck, 16, activation="gelu")
rdrop = partial(two_pass, add=1.0)
published = Mosa(over=plain(dropout=0.1), draw="batch", scaling="paper")


def official(budget: Budget) -> Official:
    """The released recipe at a budget: a tenth of the epochs to warm up, the first one at lr 0.

    Without the dropout of the trunk, whose frozen half is computed once.
    """
    return Official(
        16, lr=BASE.lr, epochs=budget.epochs, batch_size=BASE.batch_size,
        warmup_epochs=max(1, budget.epochs // 10),
    )  # fmt: skip


ADAPTER = Arm("adapter", lambda _: plain())
MOSA = Arm("MoSA", lambda b: Mosa.for_budget(b.images, b.epochs, over=plain()))
ARMS = (
    ADAPTER,
    MOSA,
    Arm("adapter, scale / N", lambda _: plain(scale=0.1 / 4)),
    Arm("adapter, weight dropout", lambda _: plain(weight_dropout=0.75)),
    Arm("adapter, R-Drop", lambda _: plain(dropout=0.1), rdrop),
    Arm("adapter, R-Drop, half the epochs", lambda _: plain(dropout=0.1), rdrop, epochs=0.5),
    Arm("AdaMix", lambda _: Adamix(over=plain(dropout=0.1)), two_pass),
    Arm("AdaMix, half the epochs", lambda _: Adamix(over=plain(dropout=0.1)), two_pass, epochs=0.5),
    Arm("MoSA as published", lambda _: published, two_pass),
    Arm("MoSA as published, half the epochs", lambda _: published, two_pass, epochs=0.5),
    Arm(
        "MoSA, official recipe",
        lambda b: official(b).method,
        partial(two_pass, **Official().objective),
        options=lambda b: {
            "optimizer": official(b).optimizer,
            "lr_factor": official(b).lr_factor,
        },
    ),  # fmt: skip
)
Scores = Mapping[tuple[str, str, str, int], float]


def compare(
    seeds: Sequence[int],
    report: Callable[[str], None],
    *,
    arms: Sequence[Arm],
    budgets: Sequence[Budget],
    sets: Sequence[str] = SETS,
) -> Result:
    """Every arm on every set, budget and seed; the lower end of MoSA's paired interval."""
    study, scores, seconds = Study(base=BASE), {}, {}
    with threads(1):  # tiny batches: two threads cost more than they give
        for seed in seeds:
            for name in sets:
                for budget in budgets:
                    for arm in arms:
                        score = study.cell(name, budget, arm, seed)
                        key = budget.name, arm.name, name, seed
                        scores[key], seconds[key] = score.accuracy, score.cpu
                        report(
                            f"{name}, {budget.name}, seed {seed}, {arm.name}: "
                            f"{score.accuracy:.1f} % in {score.cpu:.0f} CPU s"
                        )
    main = differences(scores, SCARCE.name, MOSA.name, sets, seeds)
    mean, half = paired(main)
    rows = [row(scores, seconds, budget, arm, sets, seeds) for budget in budgets for arm in arms]
    note = (
        f"MoSA minus the plain adapter where data is scarce: {mean:+.2f} points, 95 % interval "
        f"{mean - half:+.2f} ... {mean + half:+.2f} over {len(main)} pairs (set, seed)."
    )
    note += f"\n{sum(seconds.values()) / 3600:.1f} CPU hours of training in {len(scores)} cells."
    if study.kept:
        note += (
            f" {study.kept} of them were kept from earlier runs, which the time "
            f"above does not count; {study.cells.path.name} deleted, all run again."
        )
    return Result(mean - half, half, tuple(main), tuple(rows), note)


def differences(
    scores: Scores, budget: str, arm: str, sets: Sequence[str], seeds: Sequence[int]
) -> list[float]:
    """Points above the plain adapter, one for each set and seed."""
    return [
        scores[budget, arm, s, seed] - scores[budget, ADAPTER.name, s, seed]
        for s in sets
        for seed in seeds
    ]


def row(
    scores: Scores,
    seconds: Scores,
    budget: Budget,
    arm: Arm,
    sets: Sequence[str],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """One line of the table: accuracy by set, the paired difference, the relative cost."""
    line: dict[str, Any] = {
        "budget": f"{budget.images} images x {budget.epochs} epochs", "method": arm.name,
    }  # fmt: skip
    for name in sets:
        values = [scores[budget.name, arm.name, name, seed] for seed in seeds]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        line[name] = f"{statistics.mean(values):.1f} ± {spread:.1f}"
    mean, half = paired(differences(scores, budget.name, arm.name, sets, seeds))
    line["minus adapter"] = "" if arm is ADAPTER else f"{mean:+.2f} ± {half:.2f}"
    cost = [
        seconds[budget.name, arm.name, s, i] / seconds[budget.name, ADAPTER.name, s, i]
        for s in sets
        for i in seeds
    ]
    line["CPU time"] = f"{statistics.median(cost):.2f}x"
    return line


SENTENCE = (
    "An adapter that is split into disjoint parts, trained stochastically and merged is more "
    "accurate than the same adapter trained whole, at the same cost, where data is scarce "
    "(arXiv:2312.02923, abstract)."
)
BASELINE = "the same adapter, not split; lower end of the 95 % interval of paired differences"

CLAIMS = (
    Claim(
        "mosa",
        sentence=SENTENCE,
        baseline=BASELINE,
        bar=0.0,
        sense=">=",
        run=partial(compare, arms=(ADAPTER, MOSA), budgets=(SCARCE,)),
        seeds=(0, 1, 2),
        minutes=10,
    ),
    Claim(
        "mosa-long",
        sentence=SENTENCE + " With every other way to regularise that adapter beside it.",
        baseline=BASELINE,
        bar=0.0,
        sense=">=",
        run=partial(compare, arms=ARMS, budgets=(SCARCE, AMPLE)),
        seeds=(0, 1, 2, 3, 4),
        needs="long",
        minutes=150,
    ),
)
