"""Cells by the dozen: those that are kept are read, the others run, on any number of processes.

At equal operations each contender may spend what the baseline spends in the steps of the scale. How
much one spends a step is known from its own cell at equal steps, so that is run first; then it has
steps * baseline's operations / its own, the rate's course and all schedules stretched or shrunk to
them. What was spent in the end is in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from intarsia.core.checks import one_of
from intarsia.core.store import KEY, Store, key_of
from intarsia.data.packages import cache_dir
from intarsia.experiments.pool import Trial, TrialEnd, refuse_failed, run_told

from .build import check_causal
from .cell import VERSION, work
from .materials import edition, is_text
from .scale import PICTURES, TEXT, Scale
from .table import BASELINE, VARIANTS
from .variant import Variant

BUDGETS = ("steps", "flops")


class RouterTrial(NamedTuple):
    """One cell: who, on what ("gcide", "austen", "fashion-mnist"), from which seed, at what."""

    variant: Variant
    data: str
    seed: int = 0
    budget: str = "steps"

    def __str__(self) -> str:
        return f"{self.variant.name} on {self.data}, seed {self.seed}, equal {self.budget}"


def cells(
    asked: Sequence[RouterTrial | tuple[Variant, str, int, str]],
    *,
    jobs: int = 1,
    report: Callable[[str], None] = print,
    baseline: Variant = VARIANTS[BASELINE],
    text: Scale = TEXT,
    pictures: Scale = PICTURES,
    sees_later: bool = False,
    file: Path | None = None,
    executor: str = "processes",
    threads: int | None = 1,
) -> list[dict[str, Any]]:
    """The results of cells, in their order: what `work` tells, its inputs, name and budget.

    Each is run once for all who ask and kept in a JSON-lines file; killed and called again, it goes
    on with what is missing. baseline: whose operations are the measure of the budget "flops".
    sees_later: acknowledges contenders that see later tokens of a text.
    file: None = one below the cache folder.  jobs, executor, threads: as `run_trials` has them.

    Raises: ConfigError, before a cell is run, for what cannot be; TrainingError when all others
    have run, if some failed; KeyboardInterrupt after Ctrl-C.
    """
    wanted = [RouterTrial(*one) for one in asked]
    _check(wanted, sees_later)
    kept = Store(file or cache_dir() / "routing" / "cells.jsonl")

    def scale_of(one: RouterTrial) -> Scale:
        return text if is_text(one.data) else pictures

    def inputs(one: RouterTrial, steps: int) -> dict[str, Any]:
        return _inputs(one, steps, scale_of(one), sees_later)

    how: dict[str, Any] = {"jobs": jobs, "executor": executor, "threads": threads}
    run = partial(_run, kept=kept, report=report, **how)

    first = {one._replace(budget="steps") for one in wanted}
    first |= {RouterTrial(baseline, one.data, one.seed) for one in wanted if one.budget == "flops"}
    equal = {one: inputs(one, scale_of(one).steps) for one in sorted(first, key=str)}
    failed = run(equal)
    final = {one: equal[one] for one in wanted if one.budget == "steps"}
    for one in (one for one in wanted if one.budget == "flops"):
        own, base = (equal[RouterTrial(v, one.data, one.seed)] for v in (one.variant, baseline))
        if all(key_of(cell) in kept for cell in (own, base)):
            most, each = (kept[key_of(cell)]["flops"]["total"] for cell in (base, own))
            final[one] = inputs(one, max(1, round(most / each * own["steps"])))
    failed |= run({one: said for one, said in final.items() if key_of(said) not in failed})
    refuse_failed(list(failed.values()), len(wanted))
    return [
        _bare(kept[key_of(final[one])]) | {"name": one.variant.name, "budget": one.budget}
        for one in wanted
    ]


def _inputs(one: RouterTrial, steps: int, scale: Scale, sees_later: bool) -> dict[str, Any]:
    """Everything that a cell's result depends on."""
    # only where it says something: a contender that looks back has one cell
    leak = sees_later and is_text(one.data) and one.variant.sees_later
    return {
        "variant": one.variant.to_dict() | {"name": ""},  # a cell is the same under any name
        "data": one.data,
        "seed": one.seed,
        "steps": steps,
        "scale": scale.to_dict(),
        "sees_later": leak,
        "version": VERSION,
        **edition(one.data),
    }


def _check(wanted: Sequence[RouterTrial], sees_later: bool) -> None:
    for one in wanted:
        check_causal(one.variant, one.data, is_text(one.data), sees_later)
        one_of("budget", one.budget, BUDGETS)


def _bare(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != KEY}


def _run(
    many: Mapping[RouterTrial, Mapping[str, Any]], *, kept: Store, **how: Any
) -> dict[str, str]:
    """Run those that are not kept; the errors of those that failed, by their keys."""
    left = {key_of(said): (one, said) for one, said in many.items()}
    trials = [
        Trial(str(one), said, kind=f"{one.variant.name} on {one.data}")
        for key, (one, said) in left.items()
        if key not in kept
    ]
    failed: dict[str, str] = {}

    def done(end: TrialEnd) -> None:
        if end.result is None:
            failed[key_of(end.trial.inputs)] = f"{end.trial.name}: {end.error}"
        else:
            kept.add(key_of(end.trial.inputs), {**end.trial.inputs, **end.result})

    run_told(trials, work, done=done, describe=_said, **how)
    return failed


def _said(result: Mapping[str, Any]) -> str:
    return f"test loss {result['loss']:.3f}"
