"""Contenders of the routers' kit side by side, as the experiments on routers compare them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from intarsia.runs.pool import Arm

from ..kit import Report, Result
from ..kit.arms import judge, shown
from . import TEXT, RouterTrial, Scale, Variant, cells

CORPUS = "austen"

Cell = Mapping[str, Any]
"""What `intarsia_lab.routing.cells` tells of one."""


class AtBudget(NamedTuple):
    """A contender at equal "steps" or "flops"."""

    variant: Variant
    budget: str = "steps"


def arm(name: str, variant: Variant, budget: str = "steps") -> Arm[AtBudget]:
    """Return a router at a budget, under the name that it has in a table."""
    return Arm(name, AtBudget(variant, budget))


class Bench(NamedTuple):
    """The setting of an experiment's runs.  corpus: of texts; executor: as `cells` has it."""

    corpus: str = CORPUS
    scale: Scale = TEXT
    executor: str = "processes"

    def cells(
        self,
        arms: Sequence[Arm[AtBudget]],
        seeds: Sequence[int],
        report: Report,
        *,
        measure: Arm[AtBudget] | None = None,
        sees_later: bool = False,
    ) -> dict[str, list[Cell]]:
        """Train every router with every seed; return the results by router, one for each seed.

        arms: routers and their budgets; seeds: of the runs; report: prints progress; measure: the
          router with the operations that set the budget "flops", None = the first one; sees_later:
          allow routers by which later tokens affect earlier ones.
        """
        # settings with a seed; `arm` below is an arm's settings, an `AtBudget`
        both = [(arm.settings, seed) for arm in arms for seed in seeds]
        results: list[Cell] = []
        # the function of `intarsia_lab.routing`, not this method
        results += cells(
            [RouterTrial(arm.variant, self.corpus, seed, arm.budget) for arm, seed in both],
            baseline=(measure or arms[0]).settings.variant,
            text=self.scale,
            report=report,
            executor=self.executor,
            sees_later=sees_later,
        )
        # results come in the order of the trials: arm by arm, and in each seed by seed
        per_arm = len(seeds)
        return {arm.name: results[i * per_arm : (i + 1) * per_arm] for i, arm in enumerate(arms)}


BENCH = Bench()


def loss(cell: Cell) -> float:
    """Return the loss of the test part, in nats of a token."""
    return cell["loss"]


def perplexity(cell: Cell) -> float:
    """Return the perplexity of a run's test part, exp of the loss of a token."""
    return math.exp(loss(cell))


def hurt(cell: Cell) -> float:
    """Return by which share the perplexity rises if some of the input tokens are replaced.

    cell: a run's results; "swapped_loss" is the loss with replaced tokens. 0.1 = 10 % more.
    """
    # perplexities' ratio is exp of the losses' difference
    return math.exp(cell["swapped_loss"] - cell["loss"]) - 1


def information(cell: Cell) -> float:
    """Return the mutual information of the choices in adjacent layers, in nats, mean over pairs.

    cell: a run's results.
    """
    return statistics.mean(pair["information"] for pair in cell["agreement"])


def ratio(
    seeds: Sequence[int],
    report: Report,
    *,
    ours: Arm[AtBudget],
    base: Arm[AtBudget],
    figure: Callable[[Cell], float] = loss,
    rivals: Sequence[Arm[AtBudget]] = (),
    note: str = "",
    bench: Bench = BENCH,
) -> Result:
    """Measure one router over another: the mean of the seeds' ratios of a figure.

    seeds: of the runs; report: prints progress; ours, base: the two routers; figure: measure of a
      run, as the loss; rivals: other routers for the table; note: below the table; bench: corpus
      and scale.
    """
    # the baseline comes first in the table
    results = bench.cells((base, ours, *rivals), seeds, report)
    return judged(
        results, base, lambda cells: figure(cells[ours.name]) / figure(cells[base.name]), note
    )


def judged(
    results: Mapping[str, Sequence[Cell]],
    base: Arm[AtBudget],
    figure: Callable[[Mapping[str, Cell]], float],
    note: str,
) -> Result:
    """Return a figure for each seed and its mean, with a table of all routers.

    results: runs by router, one for each seed; base: the router with which the table compares the
      others; figure: the runs of one seed by router -> a number; note: below the table.
    """
    # every router's line is compared with the baseline's runs of the same seeds
    setting = _with_setting(results, note)
    return judge(
        results, figure, lambda name, cells: _row(name, cells, results[base.name]), setting
    )


def _row(name: str, cells: Sequence[Cell], base: Sequence[Cell]) -> dict[str, Any]:
    """Return a router's line of the table, averaged over seeds."""
    losses = [loss(cell) for cell in cells]
    # operations of all training steps
    flops = statistics.mean(cell["flops"]["total"] for cell in cells)
    return {
        "contender": name,
        "steps": "/".join(sorted({str(cell["steps"]) for cell in cells})),
        "test loss": shown(losses, ".4f"),
        "ratio": f"{statistics.mean(ratios(cells, base, loss)):.4f}",
        "perplexity": f"{statistics.mean(map(perplexity, cells)):.2f}",
        "of perplexity": f"{statistics.mean(ratios(cells, base, perplexity)):.4f}",
        "swapped": f"+{100 * statistics.mean(map(hurt, cells)):.1f} %",
        "information": f"{statistics.mean(map(information, cells)):.3f}",
        "active": f"{statistics.mean(map(active, cells)):.2f}",
        "in test": f"{statistics.mean(_layers(cell, 'active') for cell in cells):.2f}",
        "load CV": f"{statistics.mean(_layers(cell, 'load_cv') for cell in cells):.2f}",
        "operations": f"{flops:.2e}",
        "CPU, s": f"{statistics.median(cell['cpu_seconds'] for cell in cells):.0f}",
    }


def active(cell: Cell) -> float:
    """Return the mean number of experts of a token in the last training step.

    cell: a run's results. 0 for a model without mixtures.
    """
    # the newest point of the training's curve
    layers = cell["curve"][-1]["layers"]
    return statistics.mean(layer["active"] for layer in layers) if layers else 0.0


def _layers(cell: Cell, name: str) -> float:
    # mean over the layers of a run
    return statistics.mean(layer[name] for layer in cell["layers"])


def ratios(
    ours: Sequence[Cell], base: Sequence[Cell], figure: Callable[[Cell], float]
) -> tuple[float, ...]:
    return tuple(figure(a) / figure(b) for a, b in zip(ours, base, strict=True))


def _with_setting(results: Mapping[str, Sequence[Cell]], note: str) -> str:
    """Put a description of model, data and columns before a note."""
    # all runs have the same model and data
    cell = next(iter(results.values()))[0]
    scale = cell["scale"]
    setting = (
        f"A decoder of width {scale['shape']['width']} with {scale['shape']['layers']} layers of "
        f"experts, {scale['batch']} rows of {scale['length']} tokens a step, corpus "
        f"{cell['data']!r}; the loss is of the test part, in nats of a token. Ratios are means "
        "over seeds. Swapped: how much the perplexity rises when a fortieth of the tokens that are "
        "read are others. Information: between the first choices of a layer and the next, in nats. "
        "Active: experts of a token in the last step of training; in test: on the test part, where "
        "no noise is added."
    )
    return f"{setting}\n{note}" if note else setting
