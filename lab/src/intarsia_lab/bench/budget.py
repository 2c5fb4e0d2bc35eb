"""Fit a plan into minutes: seeds go first, then epochs, and the plan names its cuts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from intarsia.core.errors import ConfigError, TrainingError
from intarsia.core.store import Store, key_of
from intarsia.runs.choosing.folded import SCORING, SETTING_UP
from intarsia.runs.execute import for_budget, method_of
from intarsia.runs.experiment import Pictures
from intarsia.runs.one_run import run as one_run
from intarsia.runs.pool import Trial, TrialEnd, Work, run_trials

from ..materials.suites import SuiteTask
from .folder import opened
from .plan import BenchPlan, Slot
from .preflight import absent, check
from .run import How

FEWEST_EPOCHS = 5
PILOTS = "pilots.jsonl"
PILOT_IMAGES, PILOT_EPOCHS = 64, 20  # so long that the start of a run does not count

Costs = Mapping[str, float]
"""Seconds of training for one image, by the arm's name."""
CLOCKS = {"seconds": "hours", "cpu_seconds": "cpu_hours"}


def measured_costs(
    plan: BenchPlan, out: Path, execution: How, report: Callable[[str], None], work: Work = one_run
) -> Costs:
    """Time a short run of each method; return its seconds of training for one image, by method.

    The run is on the first task that has its pictures: twenty epochs of 64 images, or fewer
    epochs of more images where there are many classes. Timings are cached in `out`, so that the
    same command gives the same plan when it resumes. If a method's short run fails, it costs as
    much as the dearest one. plan: methods, tasks and seeds; execution: jobs and threads; report:
    receives progress lines; work: does one training.

    Raises: TrainingError if all of them fail; what `check` raises.
    """
    return _measured(plan, out, execution, report, work)["seconds"]


def _measured(
    plan: BenchPlan, out: Path, execution: How, report: Callable[[str], None], work: Work
) -> dict[str, Costs]:
    """Return each method's seconds for one image, by wall clock and by CPU clock."""
    check(plan, out, lambda _: None)  # the runner itself names missing things
    with opened(out, plan.asked):
        return _piloted(plan, out, execution, report, work)


def _piloted(
    plan: BenchPlan, out: Path, execution: How, report: Callable[[str], None], work: Work
) -> dict[str, Costs]:
    """Time a short training of each method; return its seconds for one image and epoch, by
    clock.
    """
    pilots, running = Store(out, PILOTS), execution.running
    missing, seed = absent(plan), plan.seeds[0]
    task = next((t for t in plan.tasks if t.name not in missing), plan.tasks[0])
    # any method of the plan: only the batch size is read from this slot
    place = Slot(task, plan.arms[0], seed)
    # a whole batch, or the memory would not be a step's
    least = max(PILOT_IMAGES, 2 * task.classes, plan.final(place).training.batch_size)
    images = min(least, _trained_on(task))
    keys: dict[str, str] = {}
    trials: list[Trial] = []
    for arm in plan.arms:
        # the key has all that a time depends on: settings, jobs at a time, device
        flat = _pilot(plan, Slot(task, arm, seed), images)
        keys[arm.name] = key = key_of({"pilot": flat, "jobs": execution.jobs, **running})
        folder, shared = (str((out / name).absolute()) for name in (f"pilots/{key}", "shared"))
        inputs = {"experiment": flat, "folder": folder, "shared": shared, "running": running}
        if key not in pilots:
            trials.append(Trial(arm.name, inputs))
    if trials:
        report(f"Timing {len(trials)} methods, to fit them into the budget.")

    errors: list[str] = []

    def done(end: TrialEnd) -> None:
        """Store a short run's seconds and bytes, or its error.  end: trial, and result or error."""
        if end.result is None:
            errors.append(f"{end.trial.name}: {end.error}")
        else:
            results = end.result["results"]
            presented = images * _pilot_epochs(images)
            row = {name: results[name] / presented for name in CLOCKS if name in results}
            peak = results.get("peak_bytes", {})
            pilots.add(
                keys[end.trial.name], row | {"peak": peak.get("accelerator", peak.get("grown"))}
            )

    run_trials(
        trials,
        work,
        jobs=execution.jobs,
        done=done,
        executor=execution.executor,
        threads=execution.threads,
    )
    rows = {name: pilots[key] for name, key in keys.items() if key in pilots}
    if not rows:
        subject = "timing for --budget"
        fix = "Mend that, or leave --budget out: runs that fail are then recorded."
        raise TrainingError(subject, got=errors[0], want="one method that can be timed", fix=fix)
    costs: dict[str, Costs] = {}
    for clock in CLOCKS:
        # one method without CPU time makes all of them incomparable
        if all(clock in row for row in rows.values()):
            measured = {name: row[clock] for name, row in rows.items()}
            # a method that could not be timed: assume the worst
            dearest = max(measured.values())
            costs[clock] = {c.name: measured.get(c.name, dearest) for c in plan.arms}
    return costs


def estimated(
    plan: BenchPlan, out: Path, execution: How, report: Callable[[str], None], work: Work = one_run
) -> dict[str, Any]:
    """Estimate the runs, hours and memory of a plan from short timed runs; nothing else is run.

    Returns "runs": their number; "hours": by the clock of this machine as it is now; "cpu_hours":
    of its cores, whatever else they do; "peak_bytes": the highest memory. None for what the short
    runs did not measure. They run one by one: runs that step together take less. out: folder that
    caches timings; execution: jobs and threads; work: does one training.

    Raises: as `measured_costs` does.
    """
    costs = _measured(plan, out, execution, report, work)
    peaks = [row["peak"] for row in Store(out, PILOTS).rows.values() if row.get("peak")]
    runs = len(list(plan.places())) + len(plan.searches())
    # jobs side by side share the clock, and not the CPU time
    jobs = {"seconds": execution.jobs, "cpu_seconds": 1}
    hours = {
        title: minutes(plan, costs[clock], jobs[clock]) / 60 if clock in costs else None
        for clock, title in CLOCKS.items()
    }
    return {"runs": runs, **hours, "peak_bytes": max(peaks, default=None)}


def _pilot(plan: BenchPlan, place: Slot, images: int) -> dict[str, Any]:
    """Return the settings of a short run like one of the plan, as flat columns."""
    final, task = plan.final(place), place.task
    # a method may choose settings by the number of images: by the whole run's number, not by the
    # short one's
    images_trained = int(_kept(plan.start.pictures, task.classes, _trained_on(task)))
    method = method_of(final)
    _, parts = for_budget(method, final, images_trained, lambda _: None)
    flat = final.flat()
    flat["settings"] = [*flat["settings"], *(f"{name}={value}" for name, value in parts.items())]
    test = min(images, task.counts["test"])
    return flat | {"images": images, "shots": None, "epochs": _pilot_epochs(images), "test": test}


def _pilot_epochs(images: int) -> int:
    """Return the epochs that make a pilot equally long for any number of images, at least two."""
    return max(2, PILOT_IMAGES * PILOT_EPOCHS // images)


def _trained_on(task: SuiteTask) -> int:
    """Images that the run which counts may train on."""
    return task.counts["train"] + task.counts.get("val", 0)


def minutes(plan: BenchPlan, costs: Costs, jobs: int) -> float:
    """Return the minutes that a plan takes: training and scoring of its runs and its searches.

    costs: seconds for one image and epoch, by method; jobs: runs at a time.
    """
    total = 0.0
    images_used = partial(_kept, plan.start.pictures)
    for place in plan.places():
        counts, run = place.task.counts, plan.final(place)
        # without a validation part of its own, a run trains on it as well
        images = _trained_on(place.task) if run.pictures.val == 0 else counts["train"]
        trained = run.training.epochs * images_used(place.task.classes, images)
        total += SETTING_UP + costs[place.arm.name] * (trained + SCORING * counts["test"])
    # searches train on the training part alone
    for place, run in plan.searches():  # those on other tasks count as this one's
        counts = place.task.counts
        trained = run.training.epochs * images_used(place.task.classes, counts["train"])
        total += SETTING_UP + costs[place.arm.name] * (trained + SCORING * counts.get("val", 0))
    return total / 60 / jobs


def _kept(pictures: Pictures, classes: int, images: int) -> float:
    """Return how many images of a training part are trained on, after limits."""
    if pictures.shots is not None:
        return min(images, pictures.shots * classes)
    limit = pictures.images
    return images if limit is None else limit * images if limit < 1 else min(images, limit)


def piloting(plan: BenchPlan, costs: Costs, jobs: int) -> float:
    """Return the minutes that the short timed runs took; the same when they were cached.

    costs: seconds for one image and epoch, by method; jobs: runs at a time.
    """
    seconds = [SETTING_UP + costs[c.name] * PILOT_IMAGES * PILOT_EPOCHS for c in plan.arms]
    return sum(seconds) / 60 / jobs


def fitted(plan: BenchPlan, costs: Costs, budget: float, jobs: int) -> BenchPlan:
    """Return the plan, or a smaller one that fits into the minutes of a budget.

    Seeds go first, then epochs. The budget pays for the short timed runs as well. costs: seconds
    for one image and epoch, by method; jobs: runs at a time.

    Raises: ConfigError if one seed of FEWEST_EPOCHS epochs does not fit.
    """
    available = budget - piloting(plan, costs, jobs)
    # step 1: seeds; one of them stays
    while minutes(plan, costs, jobs) > available and len(plan.seeds) > 1:
        gone = plan.seeds[-1]
        plan = plan.smaller(f"seed {gone} was left out.", seeds=plan.seeds[:-1])
    # step 2: epochs, as few as must go
    epochs = plan.start.training.epochs
    fewer, needed = epochs, minutes(plan, costs, jobs)
    smaller = plan
    while needed > available and fewer > FEWEST_EPOCHS:
        fewer -= 1
        smaller = replace(plan, start=plan.start.changed(epochs=fewer))
        needed = minutes(smaller, costs, jobs)
    if fewer < epochs:
        plan = smaller.smaller(f"{fewer} epochs in place of {epochs}.")
    if needed > available:
        parts = f"{len(plan.tasks)} tasks x {len(plan.arms)} methods"
        want = f"at least {needed + budget - available:.0f} for {parts}"
        fix = "Choose fewer with --tasks and --methods."
        raise ConfigError("--budget", got=f"{budget:g} minutes", want=want, fix=fix)
    return plan
