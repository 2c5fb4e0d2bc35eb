"""Sparse-IFT: a larger sparse net beats the dense one of as many FLOPs (arXiv:2303.11525)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from intarsia.fitting import fit
from intarsia.folders.verbs import apply
from intarsia.methods.sparse_ift import SparseIft, flop_audit
from intarsia.runs.pool import Arm
from intarsia.schedules import FixedMask, RigL

from ..kit import Effect, Report, Result, Study
from ..kit.arms import each, result_of, shown
from ..kit.stored import StoredResults
from ..materials import thin_resnets, wide_resnets

stored = StoredResults(__file__)

EVERY = 25  # steps between changes of RigL's masks, of 79 an epoch
EPOCHS = 8  # after four the dense net and the wide one still learn fast, and differ by chance alone


class IftScore(NamedTuple):
    """Test accuracy in points, and multiplications in shares of the dense net's, at most."""

    accuracy: float
    macs: float


class IftWay(NamedTuple):
    """The change of the dense net, and the schedule of its masks."""

    kind: str | None = None
    schedule: Any = None


RIGL = RigL(density=None, every=EVERY)
DENSE, WIDE, STATIC = "dense", "wide, RigL", "wide, fixed masks"
ARMS: Mapping[str, IftWay] = {
    DENSE: IftWay(),
    WIDE: IftWay("wide", RIGL),
    # what RigL adds to the wide net: the same net, masks that stay
    STATIC: IftWay("wide", FixedMask()),
    "parallel, RigL": IftWay("parallel", RIGL),
    "factorised, RigL": IftWay("factorised", RIGL),
    "doped, RigL": IftWay("doped", RIGL),
    # what width adds: the same density without it
    "as wide as the dense one, RigL": IftWay(
        None, RigL(wide_resnets.DENSITY, every=EVERY, spread="uniform")
    ),
}


def cell(way: IftWay, _: str, seed: int) -> IftScore:
    """Return an arm's accuracy and multiplications, stored or computed now.

    way: one of ARMS' values; the second parameter is unused, since there is one task.
    """
    name = next(name for name, candidate in ARMS.items() if candidate == way)
    inputs = {"arm": name, "seed": seed, "data": thin_resnets.DATA, "epochs": EPOCHS}
    return IftScore(*stored("sparse-ift", inputs, lambda: run(way, seed)))


def run(way: IftWay, seed: int) -> IftScore:
    """Train a thin ResNet-8 on Fashion-MNIST in one way; return its accuracy and multiplications.

    way: how the dense net is made larger and sparse, and the schedule of its masks. Accuracy is in
    points of the test part; multiplications are shares of the dense net's.
    """
    model, macs = wide_resnets.resnet(seed), 1.0
    if way.kind is not None:
        model = apply(model, SparseIft(way.kind, wide_resnets.DENSITY), seed=seed)
        # the transformation must not cost more than the dense net: a layer at most
        macs = max(layer.ratio for layer in flop_audit(model))
    elif way.schedule is not None:
        macs = wide_resnets.DENSITY
    options: dict[str, Any] = wide_resnets.OPTIONS | {"epochs": EPOCHS, "seed": seed}
    fit(model, thin_resnets.rows("train"), schedule=way.schedule, **options)
    # all test pictures: with 2,000 half of a difference's spread would come from the test
    return IftScore(thin_resnets.accuracy(model, thin_resnets.rows("test", 10_000)), macs)


def judged(seeds: tuple[int, ...], report: Report, *, arms: tuple[str, ...]) -> Result:
    """Return the first arm's test accuracy minus the second's, in points, by seed.

    Sparse-IFT makes a net larger and keeps as many multiplications by masks; the nets learn
    Fashion-MNIST. arms: keys of ARMS; those after the second stand in the table.
    """
    sheet = each([Arm(n, ARMS[n]) for n in arms], seeds, cell, report)
    by_arm = {arm: sheet.by_seed(arm, "") for arm in arms}
    # pairs by seed: as many multiplications, the same batches
    first, second = (by_arm[arm] for arm in arms[:2])
    gains = [a.accuracy - b.accuracy for a, b in zip(first, second, strict=True)]
    table = [
        {"model": arm, "accuracy": shown([result.accuracy for result in results], ".2f")}
        | {"multiplications": f"{max(result.macs for result in results):.3f}"}
        for arm, results in by_arm.items()
    ]
    mean = statistics.mean(gains)
    note = f"Mean difference {mean:+.2f} points over {len(seeds)} seeds."
    return result_of(gains, table, note)


STUDIES = (
    Study(
        "sparse-ift",
        system="Sparse-IFT",
        arxiv="2303.11525",
        question="Is a wider sparse net more accurate than dense at equal cost?",
        effect=Effect(
            "+3.5 points; -0.4 perplexity",
            "ResNet-18 on ImageNet; GPT-3 Small",
            "abstract",
            sign=1,
            values=(3.5,),
        ),
        work="a thin ResNet-8 from scratch, three quarters of the weights 0, Fashion-MNIST",
        baseline="the dense net of as many multiplications",
        unit="points of accuracy",
        differs="On this set even the wide net without zeros gains nothing.",
        measure=partial(judged, arms=(WIDE, DENSE)),
        seeds=(0, 1, 2, 3),
        minutes=3,
    ),
)
