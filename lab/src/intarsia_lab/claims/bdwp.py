"""BDWP: training with N:M weights in both directions is as good as dense (arXiv:2309.13015)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from intarsia.core import NofM
from intarsia.fitting import fit
from intarsia.reports.statistics import t_interval
from intarsia.schedules import Bdwp, FixedMask, masked_weights
from intarsia.schedules.bdwp import n_of_m_mask

from ..kit import Effect, FixedRate, Report, Result, Study, above
from ..kit.arms import by_arm, judge, row_of
from ..kit.stored import StoredResults
from ..materials import thin_resnets

stored = StoredResults(__file__)

# POINTS: the margin of a tie, which is ours
EPOCHS, PATTERN, POINTS = 8, "2:8", 1.0
# three times the channels of a thin net: of eight weights two must be able to do the work
WIDTHS = (24, 48, 96)
# not what reads the picture, nor the classifier
LAYERS = ("0.two", "1.one", "1.two", "1.short", "2.one", "2.two", "2.short")
OPTIONS: dict[str, Any] = {"batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "trackers": ()}
DENSE, BOTH, ONE_SHOT = "dense", "BDWP", "mask of the start, fixed"
FORWARD, BACKWARD = "forward only", "backward only"
ARMS = {
    DENSE: None,
    BOTH: Bdwp(PATTERN, layers=LAYERS),
    FORWARD: Bdwp(PATTERN, "forward", layers=LAYERS),
    BACKWARD: Bdwp(PATTERN, "backward", layers=LAYERS),
    # the control of the paper's point: a mask that cannot follow the weights
    ONE_SHOT: FixedMask(layers=LAYERS),
}


def momentum(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Return SGD with momentum 0.9, as the paper trains.

    model: its parameters are trained; lr: learning rate; weight_decay: factor of the L2 penalty on
    all parameters.
    """
    return SGD(model.parameters(), lr, 0.9, weight_decay=weight_decay)


@stored.cell
def accuracy(arm: str, seed: int) -> float:
    """Train a ResNet-8 with one N:M schedule; return its test accuracy in percentage points.

    The data are 10,000 pictures of Fashion-MNIST for training and as many for the test. arm: key of
    ARMS, which names how weights are pruned: not at all, to 2 of every 8 in both passes (BDWP), in
    one pass only, or by a mask that is drawn at the start and stays; seed: of the start and of the
    order of batches.
    """
    model = thin_resnets.resnet(seed, WIDTHS)
    # the same 2 of 8 as BDWP's first step has, and no other afterwards
    if arm == ONE_SHOT:
        with torch.no_grad():
            for weight in masked_weights(model, LAYERS).values():
                weight.mul_(n_of_m_mask(weight, NofM.read(PATTERN, 1)))
    options: Any = {"epochs": EPOCHS, "seed": seed, "optimizer": momentum, "schedule": ARMS[arm]}
    fit(model, thin_resnets.halved("train"), **OPTIONS | options)
    return thin_resnets.accuracy(model, thin_resnets.halved("test"))


def against(rival: str, *table_arms: str) -> Any:
    """Return the measure of a claim: the test accuracy of BDWP minus arm `rival`'s, in points.

    BDWP keeps 2 of every 8 weights in training and chooses them again in each forward and each
    backward pass. rival: key of ARMS; table_arms: others that stand in the table. The measure
    takes seeds and a function for progress lines.
    """

    def judged(seeds: tuple[int, ...], report: Report) -> Result:
        """Train the arms from every seed; judge BDWP's test accuracy minus the rival's, in
        points.
        """
        # a claim trains the arms that it needs: the dense one tells if the training worked
        names = dict.fromkeys((DENSE, BOTH, rival, *table_arms))
        accuracies = by_arm({name: name for name in names}, seeds, accuracy, report)
        # pairs by seed: both nets have the same start and the same order of batches
        # ends: both ends of the 95 % interval, for the note alone; the verdict has its own
        ends = t_interval([a - b for a, b in zip(accuracies[BOTH], accuracies[rival], strict=True)])
        note = (
            f"BDWP minus {rival}: 95 % interval {ends[0]:+.2f} ... {ends[1]:+.2f} points. "
            f"{PATTERN} in seven of the ten layers' weights; {EPOCHS} epochs, one thread."
        )
        return judge(
            accuracies,
            lambda by_training: by_training[BOTH] - by_training[rival],
            row_of("training", {"test accuracy": ("", ".2f")}),
            note,
        )

    return judged


SCALED = "scaled down: a ResNet-8, 10,000 pictures of Fashion-MNIST of 14 x 14"
study = partial(
    Study,
    # an untrained net would be within a point of another untrained net
    control=above(
        "The dense net is above chance, 10 %, by 40 points.",
        "test accuracy",
        50,
        {"training": "dense"},
    ),
    # the paper's recipe for CIFAR: SGD .9, weight decay 5e-4, a cosine from .1
    rates=FixedRate(OPTIONS["lr"], dict.fromkeys(ARMS, EPOCHS * thin_resnets.STEPS)),
    needs="long",
    minutes=40,
)

CLAIMS = (
    study(
        "bdwp",
        system="BDWP",
        unit="points of accuracy",
        scale="The paper's nets, ResNet-18 to -50 and ViT, of ten to a hundred times the weights.",
        effect=Effect(-0.56, "abstract: 0.56 % of the accuracy are lost on average at 2:8"),
        work="a ResNet-8 from scratch on Fashion-MNIST",
        sentence="A training whose forward and backward have 2 of 8 weights ends within one point "
        f"of the dense one's accuracy (BDWP, arXiv:2309.13015; {SCALED}).",
        baseline="the dense training; the difference in points",
        target=POINTS,
        sense="within",
        measure=against(DENSE),
        seeds=tuple(range(10)),
    ),
    study(
        "bdwp-one-shot",
        sentence="It is better than a 2:8 mask that is chosen at the start and stays "
        f"(BDWP, arXiv:2309.13015; {SCALED}).",
        baseline="a fixed mask; the difference in points",
        target=0.0,
        sense=">=",
        measure=against(ONE_SHOT, FORWARD, BACKWARD),
        seeds=(0, 1, 2, 3, 4),
    ),
)
