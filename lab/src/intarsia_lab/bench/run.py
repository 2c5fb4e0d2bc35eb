"""Carry a plan out: searches first, then the runs that count; no finished run is done again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intarsia.core.errors import DataError
from intarsia.core.store import Store
from intarsia.runs.experiment import Experiment
from intarsia.runs.one_run import run as one_run
from intarsia.runs.one_run import shape_of
from intarsia.runs.pool import Trial, TrialEnd, Work, run_told
from intarsia.runs.searching import SEARCHES, carry_missing, unusable
from intarsia.train.folder import STATE

from .folder import RESULTS, opened
from .plan import BenchPlan, Slot, key_for
from .preflight import check
from .report import records

Report = Callable[[str], None]
TOGETHER = 3  # seeds, see `_parts`


@dataclass(frozen=True)
class How:
    """The settings by which runs are carried out; none changes a result beyond rounding.

    jobs: runs at a time.  executor: "processes", "ray" or "here".  threads: of torch in each run,
    None shares the cores out.  again: run failed ones again.  alone: each run on its own, and all
    of its model in every step, for tests and timings.  device: None is the best that is there.
    """

    jobs: int = 1
    executor: str = "processes"
    threads: int | None = None
    again: bool = True
    alone: bool = False
    device: str | None = None

    @property
    def running(self) -> dict[str, Any]:
        """Fields of `Running` for each run."""
        return {} if self.device is None else {"device": self.device}


def run_plan(
    plan: BenchPlan, out: Path, execution: How, report: Report = print, work: Work = one_run
) -> list[records.RunResult]:
    """Do the runs of a plan that are not finished; return the results of all, in the plan's order.

    plan: methods, tasks and seeds; out: folder of the results; execution: how runs are done: jobs,
    threads, failed ones again; report: receives progress lines; work: does one run. A run that
    fails is a result with its error. Killed at any moment and started again, it gives the same
    results.

    Raises: what `preflight.check` raises; ConfigError if another process works in `out`;
    KeyboardInterrupt after Ctrl-C.
    """
    # before the first run: a model that does not exist would fail in each of them
    check(plan, out, report)
    with opened(out, plan.asked):
        places = list(plan.places())
        searches = Store(out, SEARCHES)
        # step 1: the searches, by which methods choose settings on validation data
        searched = _search(plan, places, searches, out, execution, report, work)
        once = replace(execution, again=False)  # what failed has been tried again by now
        # step 2: a rate at the edge of its grid that won: the grid grows for all methods
        while (wider := plan.protocol.wider(searched.values())) is not None:
            plan = replace(plan, protocol=wider)
            searched = _search(plan, places, searches, out, once, report, work)
        # step 3: the runs that count
        return _finish(plan, places, searched, out, execution, report, work)


def _search(
    plan: BenchPlan,
    places: Sequence[Slot],
    searches: Store,
    out: Path,
    execution: How,
    report: Report,
    work: Work,
) -> dict[Slot, tuple[list[Experiment], list[Mapping[str, Any]]]]:
    """Run the searches for settings; return for each slot its runs and their results."""
    runs = {place: plan.search(place) for place in places}
    trials: dict[str, Trial] = {}
    for place, experiments in runs.items():
        for e in experiments:
            name = f"{place}, search {', '.join(_chosen(plan, e))}"
            # slots may share a run: it is done once
            trials.setdefault(key_for(e), _trial(name, key_for(e), e, place, out, test=False))

    def carry(pending: Sequence[Trial], done: Callable[[TrialEnd], None]) -> None:
        """Do the runs that are missing; `done` is called with the end of each."""
        _run(pending, execution, report, work, done)

    carry_missing(list(trials.values()), searches, carry, again=execution.again)
    return {
        p: (experiments, [searches[key_for(e)] for e in experiments])
        for p, experiments in runs.items()
    }


def _chosen(plan: BenchPlan, experiment: Experiment) -> list[str]:
    """Return the values of an experiment that the protocol's grid varies, as "lr=0.01"."""
    flat = experiment.flat()
    return [f"{name}={flat[name]:g}" for name in plan.protocol.grid]


def _finish(
    plan: BenchPlan,
    places: Sequence[Slot],
    searched: Mapping[Slot, tuple[list[Experiment], list[Mapping[str, Any]]]],
    out: Path,
    execution: How,
    report: Report,
    work: Work,
) -> list[records.RunResult]:
    """Do the final runs that have no result yet, append each to the file, and return all."""
    file = out / RESULTS
    have = {r.key: r for r in records.read(file)} if file.exists() else {}
    # key, run (None if its search failed), record of its settings, softmax temperature
    finals: dict[Slot, tuple[str, Experiment | None, records.Setup, float | None]] = {}
    for place in places:
        settled = _settled(plan, place, *searched[place])
        finals[place] = key_for(settled[0] or plan.final(place)), *settled
    # missing runs, sorted by parts of the seeds
    place_of = {key: place for place, (key, *_) in finals.items()}

    def keep(key: str, outcome: records.Done | records.Failed, origin: records.Origin) -> None:
        """Append an outcome to the file.  key: of its settings; origin: machine and versions."""
        place = place_of[key]
        folder, task, name = _folder(place, key).as_posix(), place.task, place.arm.name
        task_id = records.TaskName(plan.suite.name, task.group, task.name, task.synthetic)
        method, setup = records.MethodName(name, name), finals[place][2]
        result = records.RunResult(key, task_id, method, place.seed, setup, folder, outcome, origin)
        records.append(file, result)
        have[key] = result
        if result.status == "done":  # nothing will continue from it
            shutil.rmtree(out / folder / STATE, ignore_errors=True)

    trials: dict[int, list[Trial]] = {}  # by the number of their seeds
    for place, (key, experiment, _, temperature) in finals.items():
        if key in have and not (execution.again and have[key].status == "failed"):
            continue
        if experiment is None:
            errors = [str(row["error"]) for row in searched[place][1]]
            failure = records.Failed(f"every run of its search failed: {errors[0]}")
            keep(key, failure, records.Origin())
            continue
        trial = _trial(str(place), key, experiment, place, out, temperature=temperature)
        trials.setdefault(_part(plan, place), []).append(trial)
    if (missing := sum(map(len, trials.values()))) < len(places):
        report(f"{len(places) - missing} of {len(places)} runs are there already.")

    def done(end: TrialEnd) -> None:
        """Record a run that has ended.  end: its trial, and its result or error."""
        key = str(end.trial.inputs["key"])
        if end.result is None:
            keep(key, records.Failed(end.error), records.Origin())
        else:
            keep(key, measured(end.result), records.Origin(**end.result["origin"]))

    # parts of the seeds in turn: a plan that is stopped has whole ones
    for number, part in sorted(trials.items()):
        if len(trials) > 1:
            report(f"Seeds {', '.join(map(str, _parts(plan.seeds)[number]))}:")
        _run(part, execution, report, work, done)
    # a result may come from another plan with the same run, so that its setup is this plan's
    return [replace(have[key], setup=setup) for key, _, setup, _ in finals.values()]


def _parts(seeds: Sequence[int]) -> list[Sequence[int]]:
    """Split seeds into parts of about three."""
    size = -(-len(seeds) // -(-len(seeds) // TOGETHER))
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


def _part(plan: BenchPlan, place: Slot) -> int:
    """Return the number of the part that a slot's seed is in."""
    return next(n for n, seeds in enumerate(_parts(plan.seeds)) if place.seed in seeds)


def _settled(
    plan: BenchPlan, place: Slot, runs: Sequence[Experiment], ends: Sequence[Mapping[str, Any]]
) -> tuple[Experiment | None, records.Setup, float | None]:
    """Return the final run with the settings its search chose, a record of them, and a
    temperature.
    """
    final, rules = plan.final(place), plan.protocol
    epochs = final.training.epochs
    setup = records.Setup(rules.name, plan.model, epochs)
    if not runs:
        return final, setup, None
    best = rules.best(runs, ends)
    # every run of the search failed
    if best is None:
        return None, setup, None
    flat = best[0].flat()
    selection = {name: flat[name] for name in rules.grid}
    # failed runs have taken time as well
    spent = sum(float(row.get("seconds", 0.0)) for row in ends)
    if rules.chosen_on is not None:  # one search for all places of the method
        spent /= len(plan.tasks) * len(plan.seeds)
    setup = records.Setup(rules.name, plan.model, epochs, selection, len(runs), spent)
    # a run that keeps its validation part fits one itself
    temperature = None if rules.chosen_on is not None else best[1].get("temperature")
    return rules.settle(final, best[0]), setup, temperature


def measured(output: Mapping[str, Any]) -> records.Done | records.Failed:
    """Return a run's scores and costs, or its failure, from the output of its process.

    Scores that are not finite numbers make it a failed run. output: "results", "parameters" and
    more, as the run wrote them.
    """
    if wrong := unusable(output["results"]["test"], "test"):
        return records.Failed(wrong)
    try:
        return _done(output)
    except DataError as error:
        return records.Failed(str(error))


def _done(output: Mapping[str, Any]) -> records.Done:
    """Convert the output of a finished run to scores and costs.  Raises: DataError."""
    scores, counts = output["results"]["test"], output["parameters"]
    peak: Mapping[str, int] = output["results"]["peak_bytes"]
    return records.Done(
        accuracy=scores["accuracy"],
        balanced_accuracy=scores["balanced_accuracy"],
        loss=scores["loss"],
        trained=counts["trained"],
        trained_without_head=counts["trained_without_head"],
        seconds=output["results"]["seconds"],
        cpu_seconds=output["results"]["cpu_seconds"],
        # memory of the accelerator, or else by how much the process has grown
        peak_bytes=peak.get("accelerator", peak.get("grown")),
        own_task_accuracy=scores.get("own_task_accuracy"),
        ece=scores.get("ece"),
        tempered_loss=scores.get("tempered_loss"),
    )


def _folder(place: Slot, key: str) -> Path:
    """Return the folder of a run, below the benchmark's."""
    method = place.arm.name.replace(" ", "-")
    return Path("runs", place.task.name, f"{method}-{place.seed}-{key[:6]}")


def _trial(
    name: str,
    key: str,
    experiment: Experiment,
    place: Slot,
    out: Path,
    *,
    test: bool = True,
    temperature: float | None = None,
) -> Trial:
    """Build the trial of one experiment: everything that a worker process needs."""
    inputs = {
        "key": key,
        "experiment": experiment.flat(),
        "folder": str((out / _folder(place, key)).absolute()),
        "shared": str((out / "shared").absolute()),
        "test": test,
        "evaluate_every": int(experiment.recipe.select == "val"),
        "temperature": temperature,
    }
    # stack: trials of equal shape may be trained side by side as one model
    return Trial(name, inputs, kind=place.arm.name, stack=shape_of(experiment, test=test))


def _run(
    trials: Sequence[Trial],
    execution: How,
    report: Report,
    work: Work,
    done: Callable[[TrialEnd], None],
) -> None:
    """Do trials by a pool of processes."""
    trials = [replace(t, inputs={**t.inputs, "running": execution.running}) for t in trials]
    # stack="": trials of one shape would else step together as one batched model
    if execution.alone or work is not one_run:
        trials = [
            replace(t, inputs={**t.inputs, "whole": execution.alone}, stack="") for t in trials
        ]
    pool: dict[str, Any] = {
        "jobs": execution.jobs,
        "executor": execution.executor,
        "threads": execution.threads,
    }
    run_told(trials, work, done=done, describe=_said, report=report, **pool)


def _said(result: Mapping[str, Any]) -> str:
    """Return a run's result in words, for a line of progress."""
    scores: Mapping[str, Any] = result["results"]
    part = "test" if "test" in scores else "val"
    if wrong := unusable(scores[part], part):
        return f"FAILED, {wrong}"
    return f"{100 * scores[part]['accuracy']:.1f} % of {part}"


def failures(results: Iterable[records.RunResult]) -> list[records.RunResult]:
    """Return the results that have no score."""
    return records.only(results, "failed")
