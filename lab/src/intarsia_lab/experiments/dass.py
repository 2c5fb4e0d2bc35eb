"""DASS: cells that were chosen sparse make better sparse nets (arXiv:2207.06968).

Against a net designed by hand, as in the paper's abstract, and against cells that a dense search
chose. Every net that is judged has as many weights.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from intarsia.core.seeds import mix
from intarsia.fitting import fit_in_phases
from intarsia.methods.dass import Dass
from intarsia.models.dass import CellSizes, ChosenNet, Genotype, Supernet, summary
from intarsia.runs.pool import Arm
from intarsia.schedules import masked_weights

from ..kit import Effect, Report, Result, Study
from ..kit.arms import each, result_of, shown
from ..kit.stored import StoredResults
from ..materials import thin_resnets

stored = StoredResults(__file__)

# small enough for three searches and a retraining within a minute each
SIZES = CellSizes(classes=10, inputs=1, channels=8, cells=2, nodes=3)
# weights of every net that is judged, a fifth of its own; with 100 they learned 18 to 36 %
BUDGET, DENSITY, EPOCHS = 400, 0.2, 2  # DENSITY, EPOCHS: of the search
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
HAND = "inverted residuals"
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


def chosen(arm: str, seed: int, number: int) -> Genotype:
    """Return the cells of an arm: found by a differentiable search, or drawn at random.

    A cell is a small graph of operations; the network is a stack of cells. The search trains a
    network of all candidate operations on Fashion-MNIST: its weights on one half of the pictures,
    the choice of operations on the other. arm: key of SEARCHES, or RANDOM; number: which random
    cell of this seed, unused by a search.
    """
    # cells without a search: what a search must be worth
    if arm == RANDOM:
        draw = torch.Generator().manual_seed(mix(seed, number))
        return Genotype.drawn(SIZES.nodes, draw)
    # step 1, the search: weights learn on one half, operations are chosen on the other
    (x, y), half = thin_resnets.halved("train").tensors, thin_resnets.TRAIN // 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Supernet(SIZES, (x[half:], y[half:]), lr=CHOOSING, seed=seed)
    train = TensorDataset(x[:half], y[:half])
    trained = fit_in_phases(net, SEARCHES[arm], train, seed=seed, **OPTIONS).found
    return trained.genotype


class InvertedResidual(nn.Module):
    """MobileNet-v2's block: 1x1 to three times the channels, 3x3 by channel, 1x1 back."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build the three convolutions, each with a batch norm behind it.

        inputs, outputs: channels; stride: of the 3x3 convolution.
        """
        super().__init__()
        inner = 3 * inputs
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            *(nn.BatchNorm2d(inner), nn.ReLU6()),
            *(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.same = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.same else y


def by_hand() -> nn.Module:
    """Return a small MobileNet-v2 for grey pictures of 14 x 14, with random weights."""
    stem = (nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    sizes = ((8, 8, 1), (8, 16, 2), (16, 16, 1))
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, SIZES.classes))
    return nn.Sequential(*stem, *(InvertedResidual(*size) for size in sizes), *pool)


def trained(net: nn.Module, seed: int) -> tuple[float, int]:
    """Train a net from scratch with BUDGET weights; return its test accuracy and weights.

    The schedule is DASS's three phases (dense, pruned by degrees, fixed mask). Accuracy is in
    points, on the test pictures; weights are those that are not 0.
    """
    # the density that leaves BUDGET weights of this net, so that no arm wins by size
    total = sum(w.numel() for w in masked_weights(net).values())
    pruning = Dass(min(1.0, BUDGET / total))
    fit_in_phases(net, pruning, thin_resnets.halved("train"), seed=seed, **OPTIONS)
    nonzero = sum(int(w.count_nonzero()) for w in masked_weights(net).values())
    return thin_resnets.accuracy(net, thin_resnets.halved("test")), nonzero


@stored.cell
def cell(arm: str, number: int, seed: int) -> ChosenCells:
    """Choose the cells of an arm, train a network of them, and return its accuracy and size.

    arm: key of SEARCHES, RANDOM for cells without a search, or HAND for a net without cells;
    number: which random cell of the seed; seed: of the search and the training.
    """
    cells = None if arm == HAND else chosen(arm, seed, number)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = by_hand() if cells is None else ChosenNet(cells, SIZES)
    return ChosenCells(*trained(net, seed), arm if cells is None else summary(cells))


def row(arm: str, nets: Sequence[ChosenCells]) -> dict[str, str]:
    """Return an arm's line of the table.  nets: one of each seed."""
    weights = f"{statistics.mean(net.weights for net in nets):.0f}"
    return {"cells": arm, "accuracy": shown([n.accuracy for n in nets], ".2f"), "weights": weights}


def against_hand(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the test accuracy of nets of DASS's cells minus inverted residuals', in points.

    Both have as many weights and the same training. One difference for each seed.
    """
    arms = [Arm(name, name) for name in (OURS, HAND)]
    sheet = each(arms, seeds, cell, report, tasks=[0], describe=_said)
    ours, hand = (sheet.by_seed(name, 0) for name in (OURS, HAND))
    gains = [a.accuracy - b.accuracy for a, b in zip(ours, hand, strict=True)]
    note = f"{BUDGET} weights in each net, of about five times as many."
    return result_of(gains, [row(OURS, ours), row(HAND, hand)], note)


def _said(net: ChosenCells) -> str:
    return f"{net.accuracy:.2f} with {net.weights} weights"


STUDIES = (
    Study(
        "dass-by-hand",
        system="DASS",
        arxiv="2207.06968",
        question="Are cells searched while sparse more accurate than a sparse MobileNet-v2?",
        effect=Effect(
            "+7.91 points (81.35 and 73.44), 3.87 times as fast",
            "sparse nets on CIFAR-10",
            "abstract",
            sign=1,
            values=(7.91,),
        ),
        work="cells of 400 weights, Fashion-MNIST of 14 x 14",
        baseline="a small MobileNet-v2 of as many weights, pruned and trained alike",
        unit="points of accuracy",
        differs="Two epochs of a search choose little, and cells drawn at random were not run: "
        "a gain may be the space's and not the search's.",
        measure=against_hand,
        seeds=tuple(range(8)),
        minutes=27,
    ),
)
