"""Sparse Model Soups: an average of pruned nets beats the nets in it (arXiv:2306.16788)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from intarsia.fitting import fit, fit_in_phases
from intarsia.methods import SparseModelSoup
from intarsia.runs.pool import Arm
from intarsia.schedules import prune
from intarsia.schedules.phases import EndedTraining
from intarsia.train.batch_norms import recalibrate

from ..kit import FixedRate, Report, Result, Study, UnknownEffect, above, items, over_items
from ..kit.arms import each, result_of, shown
from ..kit.stored import StoredResults
from ..materials import held_out, thin_resnets

stored = StoredResults(__file__)

# one in ten of 20,000 weights, retrained below the dense net's rate: at it, or with fewer weights,
# candidates leave the basin that they share
DENSITY = 0.1
RETRAIN_LR = 0.03
FEW = 3  # seeds of an arm that only has to lose
SOUP, IMP, LONGER = "soup", "IMP", "IMP, 3x the epochs"
APART, APART_PRUNED = "independent masks", "independent masks, pruned again"
# masks of one dense net hardly differ: those of three dense nets must
STRANGERS = "masks and starts of their own, pruned again"


class Candidate(NamedTuple):
    """Answers of a trained net to the test pictures, and its validation accuracy in points."""

    marks: str
    validated: float


def scored(model: nn.Module) -> Candidate:
    """Return a net's answers to all 10,000 test pictures, and its accuracy on 5,000 others."""
    validated = items.accuracy(items.answers(model, held_out.halved()))
    return Candidate(items.answers(model, thin_resnets.halved("test")), validated)


ALONE: list[Candidate] = []  # of the round that runs


@dataclass(frozen=True)
class ScoredSoup(SparseModelSoup):
    """The method with its candidates scored, for the table alone."""

    @property
    def card_key(self) -> str:
        """The key of the soup's card."""
        return "sms"

    def _average_candidates(self, run: EndedTraining, **options: Any) -> None:
        """Score the candidate that has just been trained, then average as the method does."""
        ALONE[:] = ALONE[-self.candidates + 1 :] + [scored(run.model)]
        super()._average_candidates(run, **options)


class Souped(NamedTuple):
    """Answers of a soup and of its candidates to the test pictures, and the share of its weights.

    picked: the number of the candidate with the best validation accuracy.
    """

    marks: str
    parts: list[str]
    picked: int
    density: float

    @property
    def result(self) -> float:
        """Test accuracy of the soup, in points."""
        return items.accuracy(self.marks)

    @property
    def alone(self) -> list[float]:
        """Test accuracy of each candidate, in points."""
        return [items.accuracy(part) for part in self.parts]

    @property
    def mean(self) -> float:
        """Mean test accuracy of its candidates, in points."""
        return statistics.mean(self.alone)

    @property
    def best(self) -> float:
        """Test accuracy of the candidate that validation pictures choose, in points."""
        return self.alone[self.picked]

    @classmethod
    def of(cls, model: nn.Module, parts: list[Candidate]) -> Souped:
        """Return the scores of a net.  parts: candidates that it is the average of; may be none."""
        parts = parts or [scored(model)]
        marks = items.answers(model, thin_resnets.halved("test"))
        best = max(range(len(parts)), key=lambda i: parts[i].validated)
        return cls(marks, [p.marks for p in parts], best, thin_resnets.density_of(model))


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
        """Prune and train in one way; return its answers and those of its parts.

        arm: see `_run`; density: the share of weights that stay. Stored and read if it
        was computed before.
        """
        inputs = {"arm": arm, "density": density, "seed": seed, "data": thin_resnets.DATA}
        return Souped(*stored("sms", inputs, lambda: self._run(arm, density, seed)))

    def _run(self, arm: str, density: float, seed: int) -> Souped:
        """Prune a dense ResNet and train it in one way; return its scores."""
        if arm in (APART, APART_PRUNED, STRANGERS):
            # far from every seed of a claim
            starts = [seed + 1000 * i * (arm == STRANGERS) for i in range(thin_resnets.CANDIDATES)]
            return self._independent(density, starts, again=arm != APART)
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
        return Souped.of(model, list(ALONE))

    def _independent(self, density: float, starts: Sequence[int], *, again: bool) -> Souped:
        """Average nets that were pruned and trained apart, each with its own mask; score it."""
        states: list[dict[str, Tensor]] = []
        parts: list[Candidate] = []
        model = self.start(starts[0])
        for i, start in enumerate(starts):
            model = self.start(start)
            options: Any = {
                "epochs": thin_resnets.EPOCHS,
                "seed": 100 * starts[0] + i,
                "lr": RETRAIN_LR,
                "optimizer": thin_resnets.nesterov,
            }
            method = SparseModelSoup(density, thin_resnets.ROUNDS, 1)
            fit_in_phases(
                model, method, thin_resnets.halved("train"), **thin_resnets.OPTIONS | options
            )
            states.append({n: t.clone() for n, t in model.state_dict().items()})
            parts.append(scored(model))
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
        return Souped.of(model, parts)


Soups = Mapping[str, Souped]  # arm -> its soup
Pair = tuple[np.ndarray, np.ndarray]  # accuracy of each test picture in points, ours and theirs


def with_parts(soups: Soups) -> Pair:
    """Return the points of a soup, and the mean of its candidates', for each test picture."""
    soup = soups[SOUP]
    return items.points(soup.marks), np.mean([items.points(part) for part in soup.parts], axis=0)


def with_longer(soups: Soups) -> Pair:
    """Return the points of a soup, and those of one net of as many epochs."""
    return items.points(soups[SOUP].marks), items.points(soups[LONGER].marks)


def of_soups(
    seeds: tuple[int, ...],
    report: Report,
    *,
    arms: tuple[str, ...],
    pair: Callable[[Soups], Pair],
    few: tuple[str, ...] = (),
) -> Result:
    """Prune and train thin ResNets on Fashion-MNIST in several ways; compare two, by seed.

    A soup is the average of nets that share a mask with a tenth of the weights. arms: the ways, see
    `DenseNets._run`; pair: the soups of a seed -> what is compared; few: arms of the first FEW
    seeds alone. The interval is over test pictures and seeds.
    """
    nets = DenseNets()

    def trained(names: tuple[str, ...], some: tuple[int, ...]) -> list[Soups]:
        """Return the soups of each seed."""
        named = [Arm(name, name) for name in names]
        sheet = each(named, some, nets.cell, report, tasks=[DENSITY], describe=_in_words)
        return [{name: sheet.results[name, DENSITY, seed] for name in names} for seed in some]

    by_seed = trained(arms, seeds)
    table = [_row(arm, [soups[arm] for soups in by_seed]) for arm in arms]
    if few:
        by_few = trained(few, seeds[:FEW])
        table += [_row(arm, [soups[arm] for soups in by_few]) for arm in few]
    # the paper's second wish: as good as the candidate that one would have picked
    better = sum(soups[SOUP].result >= max(soups[SOUP].alone) for soups in by_seed)
    note = (
        f"The soup is at least as accurate as its best candidate in {better} of {len(seeds)} "
        f"seeds; validation is on {held_out.COUNT:,} other pictures. Nets with {APART} choose "
        "them apart: their average is denser than they are, until it is pruned again."
    )
    ours, theirs = zip(*map(pair, by_seed), strict=True)
    values = [float((a - b).mean()) for a, b in zip(ours, theirs, strict=True)]
    pictures = [np.arange(len(answers)) for answers in ours]
    return replace(result_of(values, table, note), items=over_items(pictures, ours, theirs))


def _row(arm: str, soups: Sequence[Souped]) -> dict[str, Any]:
    """Return an arm's line of the table."""
    return {
        "model": arm,
        "accuracy": shown([soup.result for soup in soups], ".2f"),
        "mean of its parts": shown([soup.mean for soup in soups], ".2f"),
        "best by validation": shown([soup.best for soup in soups], ".2f"),
        "kept": f"{statistics.mean(soup.density for soup in soups):.3f}",
        "seeds": str(len(soups)),
    }


def _in_words(soup: Souped) -> str:
    """Return a soup's scores in a few words."""
    return f"{soup.result:.2f}, its candidates {soup.mean:.2f}, kept {soup.density:.3f}"


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
        measure=partial(of_soups, arms=(SOUP,), pair=with_parts, few=(STRANGERS,)),
        # seeds 0 to 11 were seen: a spread of .1 points
        seeds=tuple(range(12, 24)),
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
            pair=with_longer,
        ),
    ),
)
