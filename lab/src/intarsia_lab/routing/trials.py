"""Cells by the dozen: those that are kept are read, the others run, on any number of processes.

At equal operations each contender may spend what the baseline spends in the steps of the scale. How
much one spends a step is known from its own cell at equal steps, so that is run first; then it has
steps * baseline's operations / its own, the rate's course and all schedules stretched or shrunk to
them. The operations spent in the end are in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from intarsia.core.checks import one_of
from intarsia.core.store import KEY, Store, key_of
from intarsia.data.packages import cache_dir
from intarsia.runs.pool import Trial, TrialEnd, refuse_failed, run_told

from .build import check_causal
from .cell import VERSION, work
from .materials import edition, is_text
from .scale import PICTURES, TEXT, Scale
from .table import BASELINE, VARIANTS
from .variant import Variant

BUDGETS = ("steps", "flops")


class RouterTrial(NamedTuple):
    """A run: a contender on a material ("gcide", "fashion-mnist") from a seed, at a budget."""

    variant: Variant
    data: str
    seed: int = 0
    budget: str = "steps"

    def __str__(self) -> str:
        # the name in progress and errors
        return f"{self.variant.name} on {self.data}, seed {self.seed}, equal {self.budget}"


def cells(
    trials: Sequence[RouterTrial | tuple[Variant, str, int, str]],
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
    """Return the results of router trials; each is run once and then read from a file.

    trials: router, data, seed and budget; jobs, executor, threads: as `run_trials` has them;
      report: prints progress; baseline: its operations are the measure of the budget "flops";
      text, pictures: sizes of models; sees_later: acknowledges routers that see later tokens of a
      text; file: JSON lines with the results, None = one in the cache folder. Killed and called
      again, it continues with the missing runs.
    Raises: ConfigError, before a run, for what cannot be; TrainingError when all others have run,
      if some failed; KeyboardInterrupt after Ctrl-C.
    """
    requested = [RouterTrial(*trial) for trial in trials]
    _check(requested, sees_later)
    store = Store(file or cache_dir() / "routing" / "cells.jsonl")

    def scale_of(trial: RouterTrial) -> Scale:
        return text if is_text(trial.data) else pictures

    def inputs(trial: RouterTrial, steps: int) -> dict[str, Any]:
        return _inputs(trial, steps, scale_of(trial), sees_later)

    execution: dict[str, Any] = {"jobs": jobs, "executor": executor, "threads": threads}
    # runs the trials that are not in the store
    run = partial(_run, store=store, report=report, **execution)

    # all runs at equal steps: the "flops" ones need them to know their steps
    first = {trial._replace(budget="steps") for trial in requested}
    first |= {
        RouterTrial(baseline, trial.data, trial.seed)
        for trial in requested
        if trial.budget == "flops"
    }
    equal = {trial: inputs(trial, scale_of(trial).steps) for trial in sorted(first, key=str)}
    failed = run(equal)
    final = {trial: equal[trial] for trial in requested if trial.budget == "steps"}
    for trial in (trial for trial in requested if trial.budget == "flops"):
        mine, base = (equal[RouterTrial(v, *trial[1:3])] for v in (trial.variant, baseline))
        if key_of(mine) in store and key_of(base) in store:
            # as many steps as take the operations of the baseline
            operations = [store[key_of(cell)]["flops"]["total"] for cell in (base, mine)]
            steps = round(operations[0] / operations[1] * mine["steps"])
            final[trial] = inputs(trial, max(1, steps))
    # runs that have failed are not tried again
    missing = {trial: cell for trial, cell in final.items() if key_of(cell) not in failed}
    failed |= run(missing)
    refuse_failed(list(failed.values()), len(requested))
    return [
        _without_key(store[key_of(final[trial])])
        | {"name": trial.variant.name, "budget": trial.budget}
        for trial in requested
    ]


def _inputs(trial: RouterTrial, steps: int, scale: Scale, sees_later: bool) -> dict[str, Any]:
    """Return everything that a run's result depends on, as a key of the cache."""
    # only where it says something: a contender that looks back has one cell
    leak = sees_later and is_text(trial.data) and trial.variant.sees_later
    return {
        "variant": trial.variant.to_dict() | {"name": ""},  # a cell is the same under any name
        "data": trial.data,
        "seed": trial.seed,
        "steps": steps,
        "scale": scale.to_dict(),
        "sees_later": leak,
        "version": VERSION,
        **edition(trial.data),
    }


def _check(trials: Sequence[RouterTrial], sees_later: bool) -> None:
    for trial in trials:
        # refused before any run begins
        check_causal(trial.variant, trial.data, is_text(trial.data), sees_later)
        one_of("budget", trial.budget, BUDGETS)


def _without_key(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != KEY}


def _run(
    trials_inputs: Mapping[RouterTrial, Mapping[str, Any]], *, store: Store, **execution: Any
) -> dict[str, str]:
    """Do the runs that are not cached; return the errors of those that failed, by key."""
    # equal runs under several names are one
    pending = {
        key_of(inputs): (router_trial, inputs) for router_trial, inputs in trials_inputs.items()
    }
    trials = [
        Trial(str(router_trial), inputs, kind=f"{router_trial.variant.name} on {router_trial.data}")
        for key, (router_trial, inputs) in pending.items()
        if key not in store
    ]
    failed: dict[str, str] = {}

    def done(end: TrialEnd) -> None:
        """Store the result of a run that has ended, or its error."""
        if end.result is None:
            failed[key_of(end.trial.inputs)] = f"{end.trial.name}: {end.error}"
        else:
            store.add(key_of(end.trial.inputs), {**end.trial.inputs, **end.result})

    # each result is stored as soon as its run ends
    run_told(trials, work, done=done, describe=_loss_text, **execution)
    return failed


def _loss_text(result: Mapping[str, Any]) -> str:
    return f"test loss {result['loss']:.3f}"
