"""Sparse Model Soups: an average of pruned nets beats the nets in it (arXiv:2306.16788)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from intarsia.fitting import fit, fit_in_phases
from intarsia.methods import SparseModelSoup
from intarsia.runs.pool import Arm
from intarsia.schedules import prune
from intarsia.schedules.phases import EndedTraining
from intarsia.train.batch_norms import recalibrate

from ..kit import FixedRate, Report, Result, Study, UnknownEffect, above
from ..kit.arms import each, result_of, shown
from ..kit.stored import StoredResults
from ..materials import thin_resnets

stored = StoredResults(__file__)

# one in ten of 20,000 weights, retrained below the dense net's rate: at it, or with fewer weights,
# candidates leave the basin that they share
DENSITY = 0.1
RETRAIN_LR = 0.03
SOUP, IMP, LONGER = "soup", "IMP", "IMP, 3x the epochs"
APART, APART_PRUNED = "independent masks", "independent masks, pruned again"


def accuracy(model: nn.Module) -> float:
    """Return a model's accuracy on all 10,000 test pictures in percent."""
    return thin_resnets.accuracy(model, thin_resnets.halved("test"))


ALONE: list[float] = []  # of the candidates of the round that runs


@dataclass(frozen=True)
class ScoredSoup(SparseModelSoup):
    """The method with its candidates scored on the test part, for the table alone."""

    @property
    def card_key(self) -> str:
        """The key of the soup's card."""
        return "sms"

    def _average_candidates(self, run: EndedTraining, **options: Any) -> None:
        """Score the candidate that has just been trained, then average as the method does."""
        ALONE[:] = ALONE[-self.candidates + 1 :] + [accuracy(run.model)]
        super()._average_candidates(run, **options)


class Souped(NamedTuple):
    """Test accuracy in points of the result, and of its candidates; its density."""

    result: float
    mean: float
    best: float
    density: float


class DenseNets:
    """Dense nets of each seed, trained once; cells are kept."""

    def __init__(self) -> None:
        """Begin without any trained network: the first use of a seed trains its dense one."""
        self.dense: dict[int, dict[str, Tensor]] = {}

    def start(self, seed: int) -> nn.Module:
        """Return the dense thin ResNet-8 of a seed, trained on Fashion-MNIST the first time.

        A fresh copy each time, since the caller prunes it.
        """
        model = thin_resnets.resnet(seed)
        if seed not in self.dense:
            options: Any = {
                "epochs": thin_resnets.DENSE_EPOCHS,
                "seed": seed,
                "optimizer": thin_resnets.nesterov,
            }
            fit(model, thin_resnets.halved("train"), **thin_resnets.OPTIONS | options)
            # a copy: the arms prune this network in place
            self.dense[seed] = {n: t.clone() for n, t in model.state_dict().items()}
        model.load_state_dict(self.dense[seed])
        return model

    def cell(self, arm: str, density: float, seed: int) -> Souped:
        """Prune and train in one way; return the accuracy of the result and of its parts.

        arm: see `_run`; density: the share of weights that stay. Stored and read if it
        was computed before.
        """
        inputs = {"arm": arm, "density": density, "seed": seed, "data": thin_resnets.DATA}
        return Souped(*stored("sms", inputs, lambda: self._run(arm, density, seed)))

    def _run(self, arm: str, density: float, seed: int) -> Souped:
        """Prune a dense ResNet and train it in one way; return its scores."""
        if arm in (APART, APART_PRUNED):
            return self._independent(density, seed, again=arm == APART_PRUNED)
        model = self.start(seed)
        # the rival of equal cost: one net, as many epochs as all candidates have together
        times = thin_resnets.CANDIDATES if arm == LONGER else 1
        count = thin_resnets.CANDIDATES if arm == SOUP else 1
        method = ScoredSoup(density, thin_resnets.ROUNDS, count)
        options: dict[str, Any] = {
            "epochs": times * thin_resnets.EPOCHS,
            # candidates differ in the order of their batches alone, from this seed on
            "seed": 100 * seed,
            "lr": RETRAIN_LR,
            "optimizer": thin_resnets.nesterov,
        }
        ALONE.clear()
        fit_in_phases(model, method, thin_resnets.halved("train"), **thin_resnets.OPTIONS | options)
        right = accuracy(model)
        alone = list(ALONE) or [right]
        return Souped(right, statistics.mean(alone), max(alone), thin_resnets.density_of(model))

    def _independent(self, density: float, seed: int, *, again: bool) -> Souped:
        """Average nets that were pruned and trained apart, each with a mask of its own;
        score it.
        """
        states: list[dict[str, Tensor]] = []
        alone: list[float] = []
        model = self.start(seed)
        for i in range(thin_resnets.CANDIDATES):
            model = self.start(seed)
            options: Any = {
                "epochs": thin_resnets.EPOCHS,
                "seed": 100 * seed + i,
                "lr": RETRAIN_LR,
                "optimizer": thin_resnets.nesterov,
            }
            method = SparseModelSoup(density, thin_resnets.ROUNDS, 1)
            fit_in_phases(
                model, method, thin_resnets.halved("train"), **thin_resnets.OPTIONS | options
            )
            states.append({n: t.clone() for n, t in model.state_dict().items()})
            alone.append(accuracy(model))
        # the control: an average over different masks is denser than its parts
        mean = {
            n: torch.stack([s[n] for s in states]).mean(0) if t.is_floating_point() else t
            for n, t in states[0].items()
        }
        model.load_state_dict(mean)
        if again:
            prune(model, density)
        # batch norms measure the average again, as the paper does for every soup
        recalibrate(model, [thin_resnets.halved("train").tensors[0][: thin_resnets.TRAIN // 5]])
        density = thin_resnets.density_of(model)
        return Souped(accuracy(model), statistics.mean(alone), max(alone), density)


Soups = Mapping[str, Souped]  # arm -> its soup


def gain(soups: Soups) -> float:
    """Return the accuracy of a soup minus the mean of its candidates', in points."""
    return soups[SOUP].result - soups[SOUP].mean


def of_soups(
    seeds: tuple[int, ...],
    report: Report,
    *,
    arms: tuple[str, ...],
    figure: Callable[[Soups], float],
) -> Result:
    """Prune and train thin ResNets on Fashion-MNIST in several ways; return a figure, by seed.

    A soup is the average of nets that share a mask with a tenth of the weights. arms: the ways, see
    `DenseNets._run`; figure: the results of a seed by arm -> the number that is judged.
    """
    sheet = each([Arm(n, n) for n in arms], seeds, DenseNets().cell, report, tasks=[DENSITY])
    by_seed = [{arm: sheet.results[arm, DENSITY, s] for arm in arms} for s in seeds]
    table: list[dict[str, Any]] = []
    for arm in arms:
        values = {f: [getattr(soups[arm], f) for soups in by_seed] for f in Souped._fields}
        table.append(
            {"model": arm, "accuracy": shown(values["result"], ".2f")}
            | {"mean of its parts": shown(values["mean"], ".2f")}
            | {"kept": f"{statistics.mean(values['density']):.3f}"}
        )
    # the paper's second wish: as good as the candidate that one would have picked
    better = sum(soups[SOUP].result >= soups[SOUP].best for soups in by_seed)
    note = (
        f"The soup is at least as accurate as its best candidate in {better} of {len(seeds)} "
        f"seeds. Nets with {APART} choose them apart: their average is denser than they are."
    )
    return result_of([figure(soups) for soups in by_seed], table, note)


STEPS = thin_resnets.ROUNDS * thin_resnets.EPOCHS * thin_resnets.STEPS
SCALED = (
    "(Sparse Model Soups, arXiv:2306.16788; scaled down: a thin ResNet-8 on 10,000 pictures of "
    "Fashion-MNIST of 14 x 14, 90 % pruned in three rounds)."
)
study = partial(
    Study,
    sense=">=",
    control=above(
        "The nets of a soup are above chance, 10 %, by 40 points.",
        "mean of its parts",
        50,
        {"model": SOUP},
    ),
    needs="long",
    minutes=20,
)

CLAIMS = (
    study(
        "sms",
        system="Sparse Model Soups",
        unit="points of accuracy",
        scale=("Nets of a million weights and more, with candidates that stay in one basin."),
        effect=UnknownEffect("The paper's tables were not reachable."),
        work="a thin ResNet-8 from scratch on Fashion-MNIST",
        sentence="The average of nets that were trained from one pruned net with one mask is more "
        f"accurate than they are, and as sparse {SCALED}",
        baseline="the mean of its candidates, in points",
        target=0.0,
        rates=FixedRate(RETRAIN_LR, {"a candidate": STEPS}),
        measure=partial(of_soups, arms=(SOUP,), figure=gain),
        # the pilot of three seeds had a spread of .57 with a fifth of the test pictures
        seeds=tuple(range(12)),
    ),
    study(
        "sms-longer",
        sentence="It is as accurate as one net that was pruned and trained for as many epochs as "
        f"all candidates have, to a tenth of a point {SCALED}",
        baseline="pruning in rounds with three times the epochs, in points",
        target=-0.1,
        rates=FixedRate(
            RETRAIN_LR,
            {"a candidate": STEPS, IMP: STEPS, LONGER: thin_resnets.CANDIDATES * STEPS},
        ),
        measure=partial(
            of_soups,
            arms=(SOUP, LONGER, IMP, APART, APART_PRUNED),
            figure=lambda soups: soups[SOUP].result - soups[LONGER].result,
        ),
    ),
)
