"""DASS: cells that were chosen sparse make better sparse nets (arXiv:2207.06968)."""

from __future__ import annotations

import math
import statistics
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from intarsia.core.seeds import mix
from intarsia.experiments.pool import Arm
from intarsia.fitting import fit_in_phases
from intarsia.methods.dass import Dass
from intarsia.models.dass import CellSizes, ChosenNet, Genotype, Supernet, summary
from intarsia.schedules import masked_weights

from ..kit import FixedRate, Report, Result, Study, UnknownEffect, above
from ..kit.arms import class_scores, each, result_of, shown
from ..kit.stored import StoredResults
from ..materials import thin_resnets

stored = StoredResults(__file__)

# small enough for three searches and a retraining within a minute each
SIZES = CellSizes(classes=10, inputs=1, channels=8, cells=2, nodes=3)
BUDGET, DENSITY, EPOCHS = 100, 0.05, 2  # weights of every net that is judged; of the search
LR, CHOOSING = 0.025, 3e-3  # of weights and of their scores; of operations
OPTIONS: dict[str, Any] = {
    "epochs": EPOCHS,
    "batch_size": 64,
    "lr": LR,
    "weight_decay": 3e-4,
    "optimizer": thin_resnets.nesterov,
    "trackers": (),
}
OURS, DENSE, START, RANDOM = "DASS", "dense search", "sparse from the start", "random cells"
SEARCHES = {
    OURS: Dass(DENSITY),
    DENSE: Dass(1.0),
    # the ablation: the paper searches dense first, then sparse; here sparse from the first step
    START: Dass(DENSITY, (0.0, 2.0, 1.0)),
}


class ChosenCells(NamedTuple):
    """Test accuracy of the retrained net in points, its weights that are not 0, and its cells."""

    accuracy: float
    weights: int
    cells: str


@lru_cache
def rows(part: str) -> TensorDataset:
    """Return Fashion-MNIST pictures, averaged down to 14 x 14, and labels.  part: train or test."""
    x, y = thin_resnets.rows(part).tensors
    return TensorDataset(F.avg_pool2d(x, 2), y)


def chosen(arm: str, seed: int, number: int) -> Genotype:
    """Return the cells of an arm: found by a differentiable search, or drawn at random.

    A cell is a small graph of operations of which the network is a stack. The search trains a
    network of all candidate operations on Fashion-MNIST: its weights on one half of the pictures,
    the choice of operations on the other. arm: key of SEARCHES, or RANDOM; number: which random
    cell of this seed, unused by a search.
    """
    # cells without a search: what a search must be worth
    if arm == RANDOM:
        draw = torch.Generator().manual_seed(mix(seed, number))
        return Genotype.drawn(SIZES.nodes, draw)
    # step 1, the search: weights learn on one half, operations are chosen on the other
    (x, y), half = rows("train").tensors, thin_resnets.TRAIN // 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Supernet(SIZES, (x[half:], y[half:]), lr=CHOOSING, seed=seed)
    train = TensorDataset(x[:half], y[:half])
    trained = fit_in_phases(net, SEARCHES[arm], train, seed=seed, **OPTIONS).found
    return trained.genotype


def retrained(cells: Genotype, seed: int) -> ChosenCells:
    """Train a network of these cells from scratch, with BUDGET weights in every arm.

    The schedule is DASS's three phases (dense, pruned by degrees, fixed mask). Returns its accuracy
    on the test pictures in points, its number of nonzero weights, and the cells in words.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ChosenNet(cells, SIZES)
    # step 2, the net that is judged: the density that leaves BUDGET weights of these cells, so that
    # no arm wins by size
    total = sum(w.numel() for w in masked_weights(net).values())
    fit_in_phases(net, Dass(min(1.0, BUDGET / total)), rows("train"), seed=seed, **OPTIONS)
    nonzero = sum(int(w.count_nonzero()) for w in masked_weights(net).values())
    return ChosenCells(100 * class_scores(net, rows("test"), 512).accuracy, nonzero, summary(cells))


@stored.cell
def cell(arm: str, number: int, seed: int) -> ChosenCells:
    """Choose the cells of an arm, train a network of them, and return its accuracy and size.

    arm: key of SEARCHES, or RANDOM for cells without a search; number: which random cell of the
    seed; seed: of the search and the training.
    """
    return retrained(chosen(arm, seed, number), seed)


def judged(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the test accuracy of networks of DASS's cells minus that of a dense search, in points.

    Both searches are on Fashion-MNIST, and both networks are retrained with the same number of
    weights. The table has two more arms: a search that is sparse from its first step, and random
    cells. One difference for each seed.
    """
    # one search a seed for each arm
    searched = each([Arm(n, n) for n in SEARCHES], seeds, cell, report, tasks=[0], describe=_said)
    # two random cells a seed, since one draw may be lucky
    random = each([Arm(RANDOM, RANDOM)], seeds, cell, report, tasks=[0, 1], describe=_said)
    by_arm = {arm: searched.by_seed(arm, 0) for arm in SEARCHES}
    by_arm[RANDOM] = [net for number in (0, 1) for net in random.by_seed(RANDOM, number)]
    gains = [a.accuracy - b.accuracy for a, b in zip(by_arm[OURS], by_arm[DENSE], strict=True)]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    drawn = [net.accuracy for net in by_arm[RANDOM]]
    mean = statistics.mean(net.accuracy for net in by_arm[OURS])
    note = (
        f"Mean gain {statistics.mean(gains):+.2f} points, standard error {error:.2f}. Against "
        f"{len(drawn)} random cells: {mean - statistics.mean(drawn):+.2f} points to their mean, "
        f"{mean - max(drawn):+.2f} to the best."
    )
    # the random cells are the control of the search: what it gains over no search at all
    table = [
        {"cells": arm, "accuracy": shown([net.accuracy for net in results], ".2f")}
        | {"weights": f"{statistics.mean(net.weights for net in results):.0f}"}
        for arm, results in by_arm.items()
    ]
    return result_of(gains, table, note)


def _said(net: ChosenCells) -> str:
    return f"{net.accuracy:.2f} with {net.weights} weights"


CLAIMS = (
    Study(
        "dass",
        system="DASS",
        scale=(
            "Nets of 2,000 weights, 8 epochs and three retrainings of each cell, two CPU hours: "
            "nets of 100 weights learn 18 to 36 % and differ by 15 points between seeds."
        ),
        effect=UnknownEffect(
            "The paper holds 81.35 % against 73.44 % of a sparse MobileNet-v2, not against a dense "
            "search."
        ),
        work="searched cells from scratch on Fashion-MNIST",
        sentence="Cells that were searched while sparse make more accurate sparse nets than cells "
        "that were searched dense and pruned afterwards (DASS, arXiv:2207.06968; scaled down: a "
        "normal and a reduction cell of three nodes and 8 channels, 100 weights, on pictures of "
        "14 x 14 of Fashion-MNIST).",
        baseline="the dense search, in points",
        target=0.0,
        sense=">=",
        control=above(
            "The cells of the dense search are above chance, 10 %, by 10 points.",
            "accuracy",
            20,
            {"cells": "dense search"},
        ),
        # the search learns on one half of the pictures in two stages, a chosen net on all in three
        rates=FixedRate(
            {"weights of the search": LR, "operations": CHOOSING, "a chosen net": LR},
            {"weights of the search": 4 * 79, "operations": 2 * 79, "a chosen net": 6 * 157},
        ),
        measure=judged,
        seeds=(0, 1, 2, 3, 4),
        needs="long",
        minutes=60,
    ),
)
