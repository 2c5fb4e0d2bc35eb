"""Pruning SmolLM2: size, inputs, compensation, and DSnoT's swaps on top of each (2310.08915)."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from intarsia.data.language_models import language_model
from intarsia.data.texts import load_texts
from intarsia.methods.dsnot import DSnoT
from intarsia.partitions.swaps import Swapped
from intarsia.runs.pool import Arm
from intarsia.scores import Statistics
from intarsia.sparse.prune.pruner import Pruner, sparsify
from intarsia.sparse.prune.pruners import Magnitude, SparseGPT, Wanda

from ..kit import Effect, Report, Result, Study
from ..kit.arms import each, result_of
from ..kit.stored import StoredResults
from ..materials import token_loss

stored = StoredResults(__file__)

TEXTS = ("austen", "python-docs")
# where Wanda still leaves a model of this size that predicts: at .3 it is worse than a guess
SWAPPED = (0.6, 0.5)
CALIBRATION, HELD_OUT, LENGTH = 16, 24, 256  # rows, rows, tokens
BASES: dict[str, Callable[[float], Pruner]] = {
    "magnitude": Magnitude,
    "wanda": Wanda,
    "sparsegpt": SparseGPT,
}


@dataclass(frozen=True)
class CountedDSnoT(DSnoT):
    """DSnoT that adds up |eps| before and after its swaps, in SUMS."""

    @property
    def card_key(self) -> str:
        """The key of DSnoT's card."""
        return "dsnot"

    def swapped(self, weight: Tensor, mask: Tensor, statistics: Statistics) -> Swapped:
        """Return DSnoT's swaps of one layer; add their errors before and after to SUMS.

        weight: (out, in); mask: True = kept; statistics: of the layer's inputs.
        """
        swaps = super().swapped(weight, mask, statistics)
        # the sums that swaps bring to 0 are counted next to the loss: a layer's own error
        SUMS[0] += swaps.before
        SUMS[1] += swaps.after
        return swaps


SUMS = [0.0, 0.0]
SWAPS = ("wanda", "wanda + dsnot")


class Pruned(NamedTuple):
    """Mean loss on held-out rows, seconds of pruning, sum |eps| before and after swaps."""

    nll: float
    seconds: float
    before: float
    after: float


class PrunedCells:
    """SmolLM2, dense again before each cell; cells are kept."""

    def __init__(self) -> None:
        """Load nothing yet: the model and the texts' rows are loaded when a result is computed."""
        self.model: Any = None
        self.rows: dict[str, Any] = {}

    def cell(self, arm: str, task: tuple[str, float], seed: int) -> Pruned:
        """Prune SmolLM2 in one way; return its loss on held-out text, stored or computed now.

        arm: "dense", a key of BASES, or "BASE + dsnot" with DSnoT's swaps after it; task: the text
        and the density; seed: which rows calibrate.
        """
        if arm == "dense":  # one for all densities and draws
            task, seed = (task[0], 1.0), 0
        inputs = {"arm": arm, "text": task[0], "density": task[1], "seed": seed}
        return Pruned(*stored("sparsify", inputs, lambda: self._run(arm, *task, seed)))

    def _run(self, arm: str, text: str, density: float, seed: int) -> Pruned:
        """Prune SmolLM2 in one way; return its loss on held-out text and the CPU seconds
        it took.
        """
        if self.model is None:
            self.model, self.tokenizer = language_model("smollm2", progress=lambda _: None)
            self.dense = {n: t.clone() for n, t in self.model.state_dict().items()}
        if text not in self.rows:
            loaded = load_texts(text, self.tokenizer, length=LENGTH, progress=lambda _: None)
            self.rows[text] = loaded.train, [loaded.test[i] for i in range(HELD_OUT)]
        train, test = self.rows[text]
        # every cell begins with the dense weights
        self.model.load_state_dict(self.dense)
        SUMS[:] = 0.0, 0.0
        clock = time.process_time()
        if arm != "dense":
            base, _, swaps = arm.partition(" + ")
            method: Any = BASES[base](density)
            draw = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
            rows = [train[int(i)] for i in draw[:CALIBRATION]]
            sparsify(self.model, CountedDSnoT(method) if swaps else method, rows, seed=seed)
        return Pruned(token_loss.nll(self.model, test), time.process_time() - clock, *SUMS)


def ran(names: Sequence[str], densities: Sequence[float], seeds: Any, report: Report) -> Any:
    """Prune SmolLM2 in every way on both texts; return the scores.

    names: ways, see `PrunedCells.cell`; densities: shares of weights that stay.
    """
    bench = PrunedCells()
    tasks = [(text, density) for text in TEXTS for density in densities]
    return each([Arm(n, n) for n in names], seeds, bench.cell, report, tasks=tasks)


def table(sheet: Any, densities: Sequence[float], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return perplexity, the mean over draws, by text, density and arm, with CPU seconds.

    sheet: scores by arm, (text, density) and seed; densities: of the columns.
    """
    rows: list[dict[str, Any]] = []
    for text in TEXTS:
        for arm in sheet.arms:
            row: dict[str, Any] = {"text": text, "method": arm}
            for density in densities:
                results = [sheet.results[arm, (text, density), seed] for seed in seeds]
                row[f"{density:g}"] = f"{math.exp(statistics.mean(m.nll for m in results)):.1f}"
                row["CPU s"] = f"{statistics.mean(m.seconds for m in results):.0f}"
            rows.append(row)
    return rows


def of_swaps(seeds: tuple[int, ...], report: Report) -> Result:
    """Return how much DSnoT's swaps change the loss of Wanda's pruned models, in nats per token.

    DSnoT exchanges pruned weights for kept ones without training. One value for each draw of
    calibration rows, loss with swaps minus without, the mean of texts and densities: below 0 swaps
    help.
    """
    base, swaps = SWAPS
    sheet = ran(SWAPS, SWAPPED, seeds, report)
    values: list[float] = []
    falls: list[float] = []
    for seed in seeds:
        # pairs of one draw: the same calibration rows with swaps and without
        pairs = [(sheet.results[swaps, task, seed], sheet.results[base, task, seed])
                 for task in sheet.tasks]  # fmt: skip
        values.append(statistics.mean(a.nll - b.nll for a, b in pairs))
        falls += [a.before / max(a.after, 1e-12) for a, _ in pairs]
    note = f"Sum of |eps| falls {min(falls):.1f} times at least (wanted: 5)."
    return result_of(values, table(sheet, SWAPPED, seeds), note)


STUDIES = (
    Study(
        "dsnot",
        system="DSnoT",
        arxiv="2310.08915",
        question="Do swaps without training lower the loss of Wanda's masks?",
        effect=Effect(
            "perplexity 10.69 to 10.22; nine models all better",
            "masks of Wanda, 60 % zeros, LLaMA-7B, WikiText-2",
            "abstract; official repository",
            sign=-1,
            values=(-0.045,),
        ),
        work="SmolLM2-135M, two texts",
        baseline="the same mask without swaps, 40 and 50 % zeros; difference of losses",
        unit="nats a token",
        differs="At the paper's 60 and 70 % zeros a model of 135 million weights is worse than a "
        "guess.",
        measure=of_swaps,
        seeds=(0, 1, 2, 3),
        minutes=30,
    ),
)
