"""Sparse-IFT: a larger sparse net beats the dense one of as many FLOPs (arXiv:2303.11525)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from intarsia.experiments.pool import Arm
from intarsia.fitting import fit
from intarsia.hosts import apply
from intarsia.methods.sparse_ift import SparseIft, flop_audit
from intarsia.schedules import FixedMask, RigL

from ..kit import Report, Result, Study, above
from ..kit.arms import each, lower, result_of, shown
from ..kit.stored import Stored
from . import sms

stored = Stored(__file__)

WIDTHS, EPOCHS, DENSITY = (8, 16, 32), 4, 0.25
OPTIONS: dict[str, Any] = {
    "batch_size": 128,
    "lr": 0.1,
    "weight_decay": 5e-4,
    "optimizer": sms.nesterov,
    "trackers": (),
}
EVERY = 25  # steps between changes of RigL's masks, of 79 an epoch


def resnet(seed: int) -> nn.Module:
    """A thin ResNet-8 for grey pictures of 28 x 28, which its stem halves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stem = (nn.Conv2d(1, WIDTHS[0], 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        sizes = zip((WIDTHS[0], *WIDTHS), WIDTHS, (1, 2, 2), strict=False)
        blocks = [sms.ResidualBlock(a, b, stride) for a, b, stride in sizes]
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))
        return nn.Sequential(*stem, *blocks, *pool)


class IftScore(NamedTuple):
    """Test accuracy in points, and multiplications in shares of the dense net's, at most."""

    accuracy: float
    macs: float


class IftWay(NamedTuple):
    """What is done to the dense net, and how masks change."""

    kind: str | None = None
    schedule: Any = None


RIGL = RigL(density=None, every=EVERY)
DENSE, WIDE, STATIC = "dense", "wide, RigL", "wide, fixed masks"
ARMS: Mapping[str, IftWay] = {
    DENSE: IftWay(),
    WIDE: IftWay("wide", RIGL),
    STATIC: IftWay("wide", FixedMask()),
    "parallel, RigL": IftWay("parallel", RIGL),
    "factorised, RigL": IftWay("factorised", RIGL),
    "doped, RigL": IftWay("doped", RIGL),
    "as wide as the dense one, RigL": IftWay(None, RigL(DENSITY, every=EVERY, spread="uniform")),
}
OTHERS = tuple(name for name in ARMS if name not in (DENSE, WIDE, STATIC))


def cell(way: IftWay, _: str, seed: int) -> IftScore:
    """A net of one way from one seed, from the file or by training it."""
    name = next(name for name, one in ARMS.items() if one == way)
    inputs = {"arm": name, "seed": seed, "data": sms.DATA, "epochs": EPOCHS}
    return IftScore(*stored("sparse-ift", inputs, lambda: run(way, seed)))


def run(way: IftWay, seed: int) -> IftScore:
    """Train a net of one way, and score it."""
    model, macs = resnet(seed), 1.0
    if way.kind is not None:
        model = apply(model, SparseIft(way.kind, DENSITY), seed=seed)
        macs = max(layer.ratio for layer in flop_audit(model))
    elif way.schedule is not None:
        macs = DENSITY
    how: dict[str, Any] = OPTIONS | {"epochs": EPOCHS, "seed": seed}
    fit(model, sms.rows("train"), schedule=way.schedule, **how)
    return IftScore(sms.accuracy(model), macs)


def judged(
    seeds: tuple[int, ...], report: Report, *, arms: tuple[str, ...], by_mean: bool = False
) -> Result:
    """The first arm's accuracy minus the second's, in points: its mean, or the lower end of it."""
    found = each([Arm(n, ARMS[n]) for n in arms], seeds, cell, report)
    of = {arm: found.by_seed(arm, "") for arm in arms}
    first, second = (of[arm] for arm in arms[:2])
    gains = [a.accuracy - b.accuracy for a, b in zip(first, second, strict=True)]
    table = [
        {"model": arm, "accuracy": shown([one.accuracy for one in made], ".2f")}
        | {"multiplications": f"{max(one.macs for one in made):.3f}"}
        for arm, made in of.items()
    ]
    mean = statistics.mean(gains)
    note = f"Mean difference {mean:+.2f} points over {len(seeds)} seeds."
    got = mean if by_mean else lower(gains)
    return result_of(gains, table, note, over=lambda _: got)


SCALE = (
    "(Sparse-IFT, arXiv:2303.11525; scaled down: a thin ResNet-8 on 10,000 pictures of "
    "Fashion-MNIST, three quarters of the weights 0)."
)

study = partial(
    Study,
    sense=">=",
    control=above(
        "The dense net is above chance, 10 %, by 40 points.", "accuracy", 50, {"model": "dense"}
    ),
    seeds=(0, 1, 2, 3, 4),
)

CLAIMS = (
    study(
        "sparse-ift",
        system="Sparse-IFT",
        work="a thin ResNet-8 from scratch on Fashion-MNIST",
        sentence="A net of twice the width, sparse and trained by RigL, is more accurate than the "
        f"dense net of as many multiplications {SCALE}",
        baseline="the dense net, in points; the lower end of a 95 % interval of paired differences",
        target=0.0,
        measure=partial(judged, arms=(WIDE, DENSE)),
        minutes=5,
    ),
    study(
        "sparse-ift-rigl",
        sentence="In the wide sparse net masks that RigL changes are at least as good as fixed "
        f"random ones {SCALE}",
        baseline="the same net with fixed masks, in points; the mean of paired differences",
        target=0.0,
        measure=partial(judged, arms=(WIDE, STATIC, *OTHERS), by_mean=True),
        needs="long",
        minutes=12,
    ),
)
