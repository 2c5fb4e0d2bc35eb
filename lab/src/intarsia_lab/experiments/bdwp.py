"""BDWP: training with N:M weights in both directions is as good as dense (arXiv:2309.13015)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from intarsia.core import NofM
from intarsia.fitting import fit
from intarsia.reports.statistics import t_interval
from intarsia.schedules import Bdwp, FixedMask, masked_weights
from intarsia.schedules.bdwp import n_of_m_mask

from ..kit import Effect, Report, Result, Study
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
    """Return a measure: the test accuracy of BDWP minus arm `rival`'s, in points.

    BDWP keeps 2 of every 8 weights in training and chooses them again in each forward and each
    backward pass. rival: key of ARMS; table_arms: others that stand in the table. The measure
    takes seeds and a function for progress lines.
    """

    def judged(seeds: tuple[int, ...], report: Report) -> Result:
        """Train the arms from every seed; judge BDWP's test accuracy minus the rival's, in
        points.
        """
        # a study trains the arms that it needs: the dense one tells if the training worked
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


STUDIES = (
    Study(
        "bdwp",
        system="BDWP and SAT",
        arxiv="2309.13015",
        question="Does training with 2 of 8 weights both ways cost accuracy?",
        effect=Effect(
            "-0.56 points of accuracy; 1.75 times as fast on their accelerator, SAT",
            "2:8 in forward and backward, mean of several nets",
            "abstract",
            sign=-1,
            values=(-0.56,),
        ),
        work="a ResNet-8 from scratch, 10,000 pictures of Fashion-MNIST of 14 x 14",
        baseline="the dense training",
        unit="points of accuracy",
        differs="The paper's nets, ResNet-18 to -50 and ViT, have ten to a hundred times the "
        "weights; SAT's cycles are a model of hardware, which a test compares with the paper.",
        measure=against(DENSE),
        seeds=tuple(range(10)),
        minutes=21,
    ),
)
