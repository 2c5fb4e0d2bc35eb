"""RigL: masks that follow the dense gradient beat fixed random ones (arXiv:1911.11134)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from intarsia.fitting import fit
from intarsia.runs.pool import Arm
from intarsia.schedules import Gradual, RigL, Set

from ..kit import FixedRate, Report, Result, Study, above
from ..kit.arms import each, result_of, shown
from ..kit.stored import StoredResults
from ..materials import thin_resnets
from ..materials.wide_resnets import OPTIONS, resnet

stored = StoredResults(__file__)

# RigL changes its masks some twenty times in 7 epochs of 79 steps
DENSITY, EVERY, EPOCHS = 0.2, 25, 7
# with a fifth of the weights fixed masks are as good: with a tenth, and longer, places matter more
SPARSER, LONGER = 0.1, 20


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
TENTH: Mapping[str, MaskWay] = {
    RIGL: MaskWay(RigL(SPARSER, every=EVERY, spread="uniform"), LONGER),
    STATIC: MaskWay(Set(SPARSER, every=10**6, spread="uniform"), LONGER),
}


class MaskScore(NamedTuple):
    """Test accuracy in points, and operations of training in shares of the dense net's."""

    accuracy: float
    operations: float


def operations(way: MaskWay) -> float:
    """Return the operations of a training, as a share of the dense net's training as long.

    It is the mean density over the steps, with RigL's dense gradients counted. way: of ARMS, with
    shares of 7 epochs, or of TENTH, of 20.
    """
    share: float = 1.0 if way.schedule is None else way.schedule.density
    if isinstance(way.schedule, Gradual):
        steps = way.epochs * thin_resnets.STEPS
        share = statistics.mean(way.schedule.density_at(s, steps) for s in range(steps))
    elif isinstance(way.schedule, RigL):
        # (3 f_s T + 2 f_s + f_d) / (3 (T + 1)): paper, appendix H
        share = (3 * share * EVERY + 2 * share + 1) / (3 * (EVERY + 1))
    return share * way.epochs / (LONGER if way in TENTH.values() else EPOCHS)


def cell(way: MaskWay, _: str, seed: int) -> MaskScore:
    """Return an arm's test accuracy in points and its training cost, stored or computed now.

    way: of ARMS or TENTH; the second parameter is unused, since there is one task.
    """
    inputs = {"way": repr(way), "seed": seed, "data": thin_resnets.DATA}
    points = stored("rigl", inputs, lambda: accuracy(way, seed))
    return MaskScore(points, operations(way))


def accuracy(way: MaskWay, seed: int) -> float:
    """Train a thin ResNet-8 on Fashion-MNIST; return its accuracy on all test pictures in points.

    way: the schedule of its masks, and the epochs; seed: of the start and the order of batches.
    """
    model = resnet(seed)
    options: dict[str, Any] = OPTIONS | {"epochs": way.epochs, "seed": seed}
    fit(model, thin_resnets.rows("train"), schedule=way.schedule, **options)
    # with 2,000 pictures half of a difference's spread would come from the test
    return thin_resnets.accuracy(model, thin_resnets.rows("test", 10_000))


def judged(
    seeds: tuple[int, ...], report: Report, *, ways: Mapping[str, MaskWay], rival: str
) -> Result:
    """Return RigL's test accuracy minus another arm's, in points, by seed.

    All arms train a thin ResNet-8 on Fashion-MNIST: with masks that follow the dense gradient
    (RigL), masks that stay, or by degrees to as few weights. ways: ARMS or TENTH; rival: a key.
    """
    sheet = each([Arm(name, way) for name, way in ways.items()], seeds, cell, report)
    by_arm = {arm: sheet.by_seed(arm, "") for arm in sheet.arms}
    # pairs by seed: the same start and the same batches
    gains = [a.accuracy - b.accuracy for a, b in zip(by_arm[RIGL], by_arm[rival], strict=True)]
    # cost next to accuracy: a longer training could buy the difference
    table = [
        {"model": arm, "accuracy": shown([result.accuracy for result in results], ".2f")}
        | {"operations of training": f"{results[0].operations:.3f}"}
        for arm, results in by_arm.items()
    ]
    mean = statistics.mean(gains)
    note = f"Mean difference {mean:+.2f} points over {len(seeds)} seeds."
    return result_of(gains, table, note)


def rates(ways: Mapping[str, MaskWay]) -> FixedRate:
    """Return the learning rate of all arms, with the steps of each.  ways: ARMS or TENTH."""
    counts = {name: way.epochs * thin_resnets.STEPS for name, way in ways.items()}
    return FixedRate(OPTIONS["lr"], counts)


SCALE = (
    "(RigL, arXiv:1911.11134; scaled down: a thin ResNet-8 on 10,000 pictures of Fashion-MNIST, a "
)
study = partial(Study, sense=">=", needs="long")

CLAIMS = (
    study(
        "rigl",
        sentence="Masks that follow the dense gradient beat masks that stay "
        f"{SCALE}tenth of the weights).",
        baseline="fixed random masks, in points, paired by seed",
        target=0.0,
        control=above("Both nets are above chance, 10 %, by 40 points.", "accuracy", 50),
        measure=partial(judged, ways=TENTH, rival=STATIC),
        rates=rates(TENTH),
        # with the spread of .9 of the pilot at a fifth, and 2,000 pictures, twelve see .8 points
        seeds=tuple(range(12)),
        minutes=15,
    ),
    study(
        "rigl-gradual",
        sentence="Sparse from the start is within half a point of gradual pruning at as many "
        f"operations {SCALE}fifth of the weights).",
        baseline="gradual magnitude pruning, in points, paired by seed",
        target=-0.5,
        control=above(
            "The dense net is above chance, 10 %, by 40 points.", "accuracy", 50, {"model": "dense"}
        ),
        measure=partial(judged, ways=ARMS, rival=GRADUAL),
        rates=rates(ARMS),
        seeds=(0, 1, 2, 3, 4),
        minutes=20,
    ),
)
