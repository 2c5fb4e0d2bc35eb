"""RigL: masks that follow the dense gradient beat fixed random ones (arXiv:1911.11134)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from intarsia.experiments.pool import Arm
from intarsia.fitting import fit
from intarsia.schedules import Gradual, RigL, Set

from ..kit import FixedRate, Report, Result, Study, above
from ..kit.arms import each, result_of, shown
from ..kit.stored import StoredResults
from ..materials import thin_resnets
from ..materials.wide_resnets import OPTIONS, resnet

stored = StoredResults(__file__)

# RigL changes its masks some twenty times in 7 epochs of 79 steps
DENSITY, EVERY, EPOCHS = 0.2, 25, 7


class MaskWay(NamedTuple):
    """The schedule by which masks change, and the epochs of training."""

    schedule: Any
    epochs: int


RIGL, STATIC, GRADUAL = "RigL", "fixed random masks", "gradual, as many operations"
# the mean density of gradual pruning is .36 of the dense net's: 4 epochs cost what 7 do at .2
ARMS: Mapping[str, MaskWay] = {
    RIGL: MaskWay(RigL(DENSITY, every=EVERY, spread="uniform"), EPOCHS),
    STATIC: MaskWay(Set(DENSITY, every=10**6, spread="uniform"), EPOCHS),  # no change is ever due
    GRADUAL: MaskWay(Gradual(DENSITY, stop=0.75, every=EVERY), 4),
    "SET": MaskWay(Set(DENSITY, every=EVERY, spread="uniform"), EPOCHS),
    "gradual, as many epochs": MaskWay(Gradual(DENSITY, stop=0.75, every=EVERY), EPOCHS),
    "dense": MaskWay(None, EPOCHS),
}


class MaskScore(NamedTuple):
    """Test accuracy in points, and operations of training in shares of the dense net's."""

    accuracy: float
    operations: float


def operations(name: str) -> float:
    """Return the operations of an arm's training, as a share of those of the dense net's training.

    It is the mean density over the steps, with RigL's dense gradients counted. name: key of ARMS.
    """
    way = ARMS[name]
    steps = way.epochs * thin_resnets.STEPS
    match way.schedule:
        case None:
            share = 1.0
        case Gradual() as schedule:
            share = statistics.mean(schedule.density_at(s, steps) for s in range(steps))
        case RigL():  # (3 f_s T + 2 f_s + f_d) / (3 (T + 1)): paper, appendix H
            share = (3 * DENSITY * EVERY + 2 * DENSITY + 1) / (3 * (EVERY + 1))
        case _:
            share = DENSITY
    return share * way.epochs / EPOCHS


def cell(name: str, _: str, seed: int) -> MaskScore:
    """Return an arm's test accuracy in points and its training cost, stored or computed now.

    name: key of ARMS, the way masks change; the second parameter is unused, since there is one
    task.
    """
    inputs = {"arm": name, "seed": seed, "data": thin_resnets.DATA, "epochs": EPOCHS}
    points = stored("rigl", inputs, lambda: accuracy(ARMS[name], seed))
    return MaskScore(points, operations(name))


def accuracy(way: MaskWay, seed: int) -> float:
    """Train a thin ResNet-8 on Fashion-MNIST; return its test accuracy in points.

    way: the schedule of its masks, and the epochs; seed: of the start and the order of batches.
    """
    model = resnet(seed)
    options: dict[str, Any] = OPTIONS | {"epochs": way.epochs, "seed": seed}
    fit(model, thin_resnets.rows("train"), schedule=way.schedule, **options)
    return thin_resnets.accuracy(model)


def judged(seeds: tuple[int, ...], report: Report, *, rival: str) -> Result:
    """Return RigL's test accuracy minus another arm's, in points, by seed.

    All arms train a thin ResNet-8 on Fashion-MNIST, with a fifth of the weights in the end: masks
    that follow the dense gradient (RigL), masks that stay, or a net that is pruned by degrees.
    rival: key of ARMS.
    """
    sheet = each([Arm(name, name) for name in ARMS], seeds, cell, report)
    by_arm = {arm: sheet.by_seed(arm, "") for arm in sheet.arms}
    # pairs by seed: the same start and the same batches
    gains = [a.accuracy - b.accuracy for a, b in zip(by_arm[RIGL], by_arm[rival], strict=True)]
    # cost beside accuracy: a longer training could buy the difference
    table = [
        {"model": arm, "accuracy": shown([result.accuracy for result in results], ".2f")}
        | {"operations of training": f"{results[0].operations:.3f}"}
        for arm, results in by_arm.items()
    ]
    mean = statistics.mean(gains)
    note = f"Mean difference {mean:+.2f} points over {len(seeds)} seeds."
    return result_of(gains, table, note)


SCALE = (
    "(RigL, arXiv:1911.11134; scaled down: a thin ResNet-8 on 10,000 pictures of Fashion-MNIST, "
    "a fifth of the weights)."
)
study = partial(
    Study,
    sense=">=",
    control=above(
        "The dense net is above chance, 10 %, by 40 points.", "accuracy", 50, {"model": "dense"}
    ),
    rates=FixedRate(OPTIONS["lr"], {n: w.epochs * thin_resnets.STEPS for n, w in ARMS.items()}),
    seeds=(0, 1, 2, 3, 4),
    needs="long",
    minutes=20,
)

CLAIMS = (
    study(
        "rigl",
        sentence=f"Masks that follow the dense gradient beat masks that stay {SCALE}",
        baseline="fixed random masks, in points, paired by seed",
        target=0.0,
        measure=partial(judged, rival=STATIC),
    ),
    study(
        "rigl-gradual",
        sentence="Sparse from the start is within half a point of gradual pruning at as many "
        f"operations {SCALE}",
        baseline="gradual magnitude pruning, in points, paired by seed",
        target=-0.5,
        measure=partial(judged, rival=GRADUAL),
    ),
)
