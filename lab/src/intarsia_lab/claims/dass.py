"""DASS: cells that were chosen sparse make better sparse nets (arXiv:2207.06968).

Against a net designed by hand, as in the paper's abstract, and against cells that a dense search
chose. Every net that is judged has as many weights.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
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

from ..kit import Effect, FixedRate, Report, Result, Study, above
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
    note = (
        f"{BUDGET} weights in each net, of about five times as many; chosen cells: "
        f"{'; '.join(net.cells for net in ours)}."
    )
    return result_of(gains, [row(OURS, ours), row(HAND, hand)], note)


def against_dense(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the test accuracy of networks of DASS's cells minus a dense search's, in points.

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
    drawn = [net.accuracy for net in by_arm[RANDOM]]
    mean = statistics.mean(net.accuracy for net in by_arm[OURS])
    note = (
        f"Against {len(drawn)} random cells: {mean - statistics.mean(drawn):+.2f} points to their "
        f"mean, {mean - max(drawn):+.2f} to the best."
    )
    # the random cells are the control of the search: its gain over no search at all
    return result_of(gains, [row(arm, nets) for arm, nets in by_arm.items()], note)


def _said(net: ChosenCells) -> str:
    return f"{net.accuracy:.2f} with {net.weights} weights"


SCALED = (
    "(DASS, arXiv:2207.06968; scaled down: a normal and a reduction cell of three nodes and 8 "
    "channels, 400 weights, on pictures of 14 x 14 of Fashion-MNIST)."
)
# the search learns on one half of the pictures in two stages, a net that is judged on all in three
NET = 3 * EPOCHS * 157
study = partial(
    Study,
    sense=">=",
    target=0.0,
    rates=FixedRate(
        {"weights of the search": LR, "operations": CHOOSING, "a net that is judged": LR},
        {"weights of the search": 4 * 79, "operations": 2 * 79, "a net that is judged": NET},
    ),
    needs="long",
    work="searched cells from scratch on Fashion-MNIST",
)

CLAIMS = (
    study(
        "dass-by-hand",
        system="DASS",
        unit="points of accuracy",
        scale=(
            "Cells drawn at random from the same space, pruned and trained alike: they were not "
            "run, so that this gain may be the space's and not the search's. Then "
            "nets of 20,000 weights of two million on CIFAR-10, searched for 50 epochs, as in the "
            "paper: two epochs of a search choose little."
        ),
        effect=Effect(7.91, "abstract: 81.35 % against 73.44 % of a sparse MobileNet-v2"),
        sentence="Cells that were searched while sparse make more accurate sparse nets than a "
        f"MobileNet-v2 of as many weights {SCALED}",
        baseline="a small MobileNet-v2, pruned and trained alike, in points",
        control=above(
            "The net that was designed by hand is above chance, 10 %, by 20 points.",
            "accuracy",
            30,
            {"cells": HAND},
        ),
        measure=against_hand,
        seeds=tuple(range(8)),
        minutes=30,
    ),
    study(
        "dass",
        sentence="Cells that were searched while sparse make more accurate sparse nets than cells "
        f"that were searched dense and pruned afterwards {SCALED}",
        baseline="the dense search, in points",
        control=above(
            "The cells of the dense search are above chance, 10 %, by 10 points.",
            "accuracy",
            20,
            {"cells": DENSE},
        ),
        measure=against_dense,
        seeds=(0, 1, 2, 3, 4),
        minutes=60,
    ),
)
