"""Sparse Model Soups: an average of pruned nets beats the nets in it (arXiv:2306.16788)."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from intarsia.fitting import fit, fit_in_phases
from intarsia.methods import SparseModelSoup
from intarsia.schedules.phases import EndedTraining

from ..kit import Effect, Report, Result, Study
from ..kit.arms import by_arm, result_of, shown
from ..kit.stored import StoredResults
from ..materials import thin_resnets

stored = StoredResults(__file__)

# one in ten of 20,000 weights, retrained below the dense net's rate: at it, or with fewer weights,
# candidates leave the basin that they share
DENSITY = 0.1
RETRAIN_LR = 0.03
SOUP = "soup"


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

    def cell(self, density: float, seed: int) -> Souped:
        """Prune and train a soup; return the accuracy of the result and of its parts.

        density: the share of weights that stay. Stored and read if it was computed before.
        """
        inputs = {"density": density, "seed": seed, "data": thin_resnets.DATA}
        return Souped(*stored("sms", inputs, lambda: self._run(density, seed)))

    def _run(self, density: float, seed: int) -> Souped:
        """Prune a dense ResNet and train candidates of it; return the scores of their average."""
        model = self.start(seed)
        method = ScoredSoup(density, thin_resnets.ROUNDS, thin_resnets.CANDIDATES)
        options: dict[str, Any] = {
            "epochs": thin_resnets.EPOCHS,
            # candidates differ in the order of their batches alone, from this seed on
            "seed": 100 * seed,
            "lr": RETRAIN_LR,
            "optimizer": thin_resnets.nesterov,
        }
        ALONE.clear()
        fit_in_phases(model, method, thin_resnets.halved("train"), **thin_resnets.OPTIONS | options)
        right = accuracy(model)
        return Souped(right, statistics.mean(ALONE), max(ALONE), thin_resnets.density_of(model))


def of_soups(seeds: tuple[int, ...], report: Report) -> Result:
    """Return the accuracy of a soup of thin ResNets minus the mean of its candidates', by seed.

    A soup is the average of nets that share a mask with a tenth of the weights.
    """
    nets = DenseNets()
    soups = by_arm({SOUP: SOUP}, seeds, lambda _, seed: nets.cell(DENSITY, seed), report)[SOUP]
    values = {field: [getattr(soup, field) for soup in soups] for field in Souped._fields}
    row = {
        "model": SOUP,
        "accuracy": shown(values["result"], ".2f"),
        "mean of its parts": shown(values["mean"], ".2f"),
        "kept": f"{statistics.mean(values['density']):.3f}",
    }
    # the paper's second wish: as good as the candidate that one would have picked
    better = sum(soup.result >= soup.best for soup in soups)
    note = (
        f"The soup is at least as accurate as its best candidate in {better} of {len(seeds)} seeds."
    )
    return result_of([soup.result - soup.mean for soup in soups], [row], note)


STUDIES = (
    Study(
        "sms",
        system="Sparse Model Soups",
        arxiv="2306.16788",
        question="Is the average of nets with one mask more accurate than they are?",
        effect=Effect(
            "significant gains, without a figure",
            "ImageNet, WMT, CityScapes",
            "abstract; no table was found",
            sign=1,
        ),
        work="a thin ResNet-8, 90 % pruned in three rounds, Fashion-MNIST of 14 x 14",
        baseline="the mean of its candidates, as sparse",
        unit="points of accuracy",
        differs="Small nets, trained for a few epochs.",
        measure=of_soups,
        seeds=tuple(range(12)),
        minutes=12,
    ),
)
