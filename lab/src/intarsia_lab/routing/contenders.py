"""Contenders of the routers' experiment kit side by side, as the claims on routers judge them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from intarsia.data.small_models import Small
from intarsia.experiments.pool import Arm

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
    """A contender under the name it has in a table."""
    return Arm(name, AtBudget(variant, budget))


class Bench(NamedTuple):
    """Where the cells of a claim run.  corpus: of texts; executor: as `cells` has it."""

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
        """By the arm's name, one for each seed.

        measure: whose operations "flops" are equal to, None = the first arm's.
        """
        both = [(one.settings, seed) for one in arms for seed in seeds]
        made: list[Cell] = []
        made += cells(
            [RouterTrial(one.variant, self.corpus, seed, one.budget) for one, seed in both],
            baseline=(measure or arms[0]).settings.variant,
            text=self.scale,
            report=report,
            executor=self.executor,
            sees_later=sees_later,
        )
        each = len(seeds)
        return {one.name: made[i * each : (i + 1) * each] for i, one in enumerate(arms)}


BENCH = Bench()
WIDE = Bench(scale=Scale(Small(256, 6, 8, 512), batch=16, steps=2000, lr=1e-3, length=128))
"""Six layers of width 256 and 4.1 M tokens, 40 CPU minutes a cell on a core of 50 GFLOP/s."""
WIDE_WORK = "a decoder of width 256 from scratch on Austen, 4.1 M tokens"


def loss(cell: Cell) -> float:
    """Of the test part, in nats of a token."""
    return cell["loss"]


def perplexity(cell: Cell) -> float:
    """exp of the loss of a token."""
    return math.exp(loss(cell))


def hurt(cell: Cell) -> float:
    """By what share swapped tokens raise the perplexity."""
    return math.exp(cell["swapped_loss"] - cell["loss"]) - 1


def information(cell: Cell) -> float:
    """What the choices of a layer and the next know of each other, in nats, mean over the pairs."""
    return statistics.mean(pair["information"] for pair in cell["agreement"])


def ratio(
    seeds: Sequence[int],
    report: Report,
    *,
    ours: Arm[AtBudget],
    base: Arm[AtBudget],
    of: Callable[[Cell], float] = loss,
    beside: Sequence[Arm[AtBudget]] = (),
    note: str = "",
    bench: Bench = BENCH,
) -> Result:
    """A figure of one contender over that of another: the mean of the seeds' ratios."""
    found = bench.cells((base, ours, *beside), seeds, report)
    return judged(found, base, lambda cells: of(cells[ours.name]) / of(cells[base.name]), note)


def judged(
    found: Mapping[str, Sequence[Cell]],
    base: Arm[AtBudget],
    of: Callable[[Mapping[str, Cell]], float],
    note: str,
) -> Result:
    """The mean of a figure of each seed's cells.  base: whom the table holds the others against."""
    setting = _with_setting(found, note)
    return judge(found, of, lambda name, made: _row(name, made, found[base.name]), setting)


def measured(
    seeds: Sequence[int],
    report: Report,
    *,
    ours: Arm[AtBudget],
    base: Arm[AtBudget],
    of: Callable[[Cell], float],
    note: str = "",
    bench: Bench = BENCH,
) -> Result:
    """A figure of one contender by itself: the mean of the seeds; the other stands in the table."""
    found = bench.cells((base, ours), seeds, report)
    return judged(found, base, lambda cells: of(cells[ours.name]), note)


def _row(name: str, made: Sequence[Cell], base: Sequence[Cell]) -> dict[str, Any]:
    losses = [loss(cell) for cell in made]
    flops = statistics.mean(cell["flops"]["total"] for cell in made)
    return {
        "contender": name,
        "steps": "/".join(sorted({str(cell["steps"]) for cell in made})),
        "test loss": shown(losses, ".4f"),
        "ratio": f"{statistics.mean(ratios(made, base, loss)):.4f}",
        "perplexity": f"{statistics.mean(map(perplexity, made)):.2f}",
        "of perplexity": f"{statistics.mean(ratios(made, base, perplexity)):.4f}",
        "swapped": f"+{100 * statistics.mean(map(hurt, made)):.1f} %",
        "information": f"{statistics.mean(map(information, made)):.3f}",
        "active": f"{statistics.mean(map(active, made)):.2f}",
        "in test": f"{statistics.mean(_layers(cell, 'active') for cell in made):.2f}",
        "load CV": f"{statistics.mean(_layers(cell, 'load_cv') for cell in made):.2f}",
        "operations": f"{flops:.2e}",
        "CPU, s": f"{statistics.median(cell['cpu_seconds'] for cell in made):.0f}",
    }


def active(cell: Cell) -> float:
    """Experts of a token at the end of training, mean over the layers; 0 without mixtures."""
    layers = cell["curve"][-1]["layers"]
    return statistics.mean(layer["active"] for layer in layers) if layers else 0.0


def _layers(cell: Cell, what: str) -> float:
    return statistics.mean(layer[what] for layer in cell["layers"])


def ratios(
    ours: Sequence[Cell], base: Sequence[Cell], of: Callable[[Cell], float]
) -> tuple[float, ...]:
    return tuple(of(a) / of(b) for a, b in zip(ours, base, strict=True))


def _with_setting(found: Mapping[str, Sequence[Cell]], note: str) -> str:
    cell = next(iter(found.values()))[0]
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
