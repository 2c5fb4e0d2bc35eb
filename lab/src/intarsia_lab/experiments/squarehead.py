"""SquareHead: following hidden states closes more of a sparse model's gap (arXiv:2310.06927)."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from intarsia.data import corpora
from intarsia.data.small_models import SmallModel, small_decoder
from intarsia.fitting import evaluate, fit
from intarsia.runs.pool import Arm
from intarsia.schedules import FixedMask
from intarsia.sparse.prune.pruner import sparsify
from intarsia.sparse.prune.pruners import SparseGPT
from intarsia.train import SquareHead, distill, plain

from ..kit import ArmRate, Effect, Rates, Report, Result, Study
from ..kit.arms import each, result_of, shown
from ..kit.stored import StoredResults

stored = StoredResults(__file__)

STEPS, BATCH, LENGTH, HELD_OUT, CALIBRATION = 100, 16, 96, 64, 32
# twenty times the students' own: a teacher that still learns fast is passed by them
DENSE_STEPS = 2000  # of the small model's own training
OBJECTIVES: dict[str, Callable[[nn.Module], Any]] = {
    "labels": lambda _: plain,
    "labels + logits": lambda teacher: partial(distill, teacher=teacher),
    "SquareHead": SquareHead,
}
TUNED = 100  # the seed that chooses rates, which no result has


class Closed(NamedTuple):
    """Held-out loss of a token: dense, pruned, and after training; zeros filled."""

    dense: float
    pruned: float
    after: float
    filled: int

    @property
    def share(self) -> float:
        """The share of the loss gap after pruning that training closed."""
        # of dense, pruned and trained losses on the same held-out rows; above 1 if the student
        # passes its teacher
        return (self.pruned - self.after) / (self.pruned - self.dense)


def linear(step: int, steps: int) -> float:
    """Return the factor of the learning rate: up in 20 steps, then linearly down to 0.

    step: number of this step; steps: of all.
    """
    # the paper's schedule: 20 batches of warm-up, then linear
    return min((step + 1) / 20, 1) * (1 - step / steps)


class SparseCells:
    """A dense model that is pruned and trained on; cells are kept.

    name: of the cells.  rates: that the objectives choose from.  make: () -> (dense model, rows to
    train, to validate and to test), called when a cell has to be computed.
    """

    def __init__(
        self, name: str, rates: Rates, make: Callable[[], tuple[nn.Module, Any, Any, Any]]
    ):
        self.name, self.rates, self.make = name, rates, make
        self.made: Any = None

    def chosen(self, density: float, report: Report) -> tuple[ArmRate, ...]:
        """Return the rate at which each objective's student has the least validation loss."""

        def score(arm: str, lr: float) -> float:
            return -self._run(arm, density, TUNED, lr, validate=True).after

        inputs = {"bench": self.name, "density": density}
        return stored.choose("squarehead", self.rates, inputs, score, report)

    def cell(self, rate: ArmRate, density: float, seed: int) -> Closed:
        """Return a cell from the file, or by running it.  rate: of one of OBJECTIVES."""
        inputs = {"bench": self.name, "arm": rate.arm, "density": density, "seed": seed}
        inputs |= {"rate": rate.rate}
        run = partial(self._run, rate.arm, density, seed, rate.rate)
        return Closed(*stored("squarehead", inputs, run))

    def _run(
        self, arm: str, density: float, seed: int, lr: float, *, validate: bool = False
    ) -> Closed:
        """Prune a student and train it by one objective; return its test losses before and
        after.
        """
        self.made = self.made or self.make()
        dense, train, val, test = self.made
        test = val if validate else test
        draw = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
        student = copy.deepcopy(dense)
        # step 1: prune by second moments, as the paper does
        sparsify(student, SparseGPT(density), [train[i] for i in draw[:CALIBRATION]], seed=seed)
        zeros = {n: p == 0 for n, p in student.named_parameters()}
        before = [loss(model, test) for model in (dense, student)]
        # step 2: the same rows in the same order for each objective
        rows = [train[i] for i in draw[: STEPS * BATCH]]
        trained(student, rows, lr, seed, objective=OBJECTIVES[arm](dense), zeros=True)
        # a zero that was filled would be a denser student
        filled = sum(int(p[zeros[n]].count_nonzero()) for n, p in student.named_parameters())
        return Closed(before[0], before[1], loss(student, test), filled)


def trained(
    model: nn.Module, rows: Any, lr: float, seed: int, *, objective: Any = plain, zeros: bool
) -> nn.Module:
    """Train a model for one epoch over the rows by AdamW without decay; return it.

    lr: learning rate, with `linear` as its course; objective: the loss; zeros: keep weights at 0
    that are 0.
    """
    options: dict[str, Any] = {"schedule": FixedMask()} if zeros else {}
    options |= {"epochs": 1, "batch_size": BATCH, "lr": lr, "weight_decay": 0.0, "seed": seed}
    fit(model, rows, objective=objective, lr_factor=linear, trackers=(), **options)
    return model


def loss(model: nn.Module, rows: Any) -> float:
    """Return a model's mean loss per token on rows, in nats."""
    return float(evaluate(model, rows, batch_size=BATCH).scores()["loss"])


def small() -> tuple[nn.Module, Any, Any, Any]:
    """Train a small language model of bytes on Austen's novels.

    Returns the model, and rows for training a student, for choosing its rate, and for testing it.
    """
    text = corpora.read("austen", lambda _: None).encode()
    count = 2 * HELD_OUT + DENSE_STEPS * BATCH
    ids = torch.tensor(list(text[: count * LENGTH])).view(-1, LENGTH)
    rows = [{"input_ids": row, "labels": row} for row in ids]
    train, val, test = rows[: -2 * HELD_OUT], rows[-2 * HELD_OUT : -HELD_OUT], rows[-HELD_OUT:]
    model = small_decoder(SmallModel(128, 4, 4, 256), tokens=256, length=LENGTH)
    # students learn on rows of the teacher's own, or they would know more than it does
    return trained(model, train, 2e-3, 0, zeros=False), train, val, test


def closing_of(bench: SparseCells, densities: tuple[float, ...]) -> Callable[..., Result]:
    """Return a measure: how much more of the pruning gap SquareHead closes than labels.

    bench: the dense model and its rows; densities: shares of weights that stay, the worst counts.
    """

    def run(seeds: tuple[int, ...], report: Report) -> Result:
        """Return the share of the gap that SquareHead closes over the share that labels close."""
        # one rate for all densities: the best at the highest
        rates = bench.chosen(densities[0], report)
        sheet = each([Arm(r.arm, r) for r in rates], seeds, bench.cell, report, tasks=densities)
        by_arm = {
            (a, d): [sheet.results[a, d, s] for s in seeds] for a in OBJECTIVES for d in densities
        }
        ratios = {
            d: [
                # the figure: how much more of the gap than labels alone close in as many steps
                a.share / b.share
                for a, b in zip(by_arm["SquareHead", d], by_arm["labels", d], strict=True)
            ]
            for d in densities
        }
        table = [
            {"density": d, "loss": arm, "after": shown([m.after for m in results], ".3f")}
            | {
                "pruned": shown([m.pruned for m in results], ".3f"),
                "dense": f"{results[0].dense:.3f}",
            }
            | {"share closed": shown([m.share for m in results], ".3f")}
            for (arm, d), results in by_arm.items()
        ]
        logits = min(
            statistics.mean(m.share for m in by_arm["SquareHead", d])
            - statistics.mean(m.share for m in by_arm["labels + logits", d])
            for d in densities
        )
        filled = sum(m.filled for results in by_arm.values() for m in results)
        note = (
            f"Share closed minus that of labels and logits: {logits:+.3f} at least (wanted: 0). "
            f"Zeros filled: {filled} (wanted: 0). {STEPS} steps of {BATCH} x {LENGTH} tokens."
        )
        worst = min(ratios, key=lambda d: statistics.mean(ratios[d]))
        return result_of(ratios[worst], table, note, rates=rates)

    return run


SMALL = Rates((1e-3, 3e-3, 1e-2), dict.fromkeys(OBJECTIVES, STEPS))


STUDIES = (
    Study(
        "squarehead",
        system="SquareHead",
        arxiv="2310.06927",
        question="Does following the dense model's states close more of the gap?",
        effect=Effect(
            "75 % sparse without a drop; GSM8K 28.2 dense, 28.8 at 60 %",
            "MPT-7B",
            "abstract; model cards",
            sign=1,
            null=1.0,
        ),
        work="a decoder of four blocks over bytes, 80 % pruned, Austen and WordNet",
        baseline="the share of the gap that labels alone close in as many steps",
        unit="times the share that labels close",
        differs="A small model that was trained here.",
        measure=closing_of(SparseCells("small", SMALL, small), (0.2,)),
        seeds=(0, 1, 2, 3, 4),
        minutes=24,
    ),
)
