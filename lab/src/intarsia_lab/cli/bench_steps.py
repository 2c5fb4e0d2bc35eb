"""What `intarsia bench` does: read the options, run the plan, write its tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from intarsia.cli.shell import in_words
from intarsia.core.errors import ConfigError, UnknownName
from intarsia.core.schema import read
from intarsia.reports.numbers import size
from intarsia.runs.choosing.arms import ARMS, BenchArm, arm, by_task
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.train.processes import device_named

from ..bench import tables, write
from ..bench.budget import estimated, fitted, measured_costs
from ..bench.fitting_methods import suited
from ..bench.plan import BenchPlan
from ..bench.profiles import PROFILES, Profile, profile
from ..bench.protocols import OFFICIAL, PROTOCOLS, Protocol, protocol
from ..bench.publish import as_markdown
from ..bench.report import records
from ..bench.run import How, failures, run_plan
from ..materials import suites
from .words import names_in

Report = Callable[[str], None]
BASELINE = "adaptformer"
OWN = ("size", "epochs", "precision")  # options that stand for values of an Experiment
METHOD = ("method", "lr", "conv_lr", "objective", "half")  # what --list says of one
OWN_HEADS = "Each task has a head of its own: a picture's loss sees the classes of its own task."


def listed(root: Path | None) -> dict[str, Any]:
    """Return what `intarsia bench --list` prints: suites, methods, protocols and profiles.

    root: folder of the suites' pictures, None = the default; of each task it says which files are
    there.
    """
    _use_root(root)
    # Nothing is downloaded for a list.
    return {
        "suites": suites.describe(),
        # an arm's settings are a Choice, and of that `settings` are the method's own
        "methods": [
            {"name": c.name, "settings": list(c.settings.settings)}
            | {name: getattr(c.settings, name) for name in METHOD}
            for c in ARMS
        ],
        "protocols": [
            {"name": p.name, "about": p.about, "grid": {n: list(v) for n, v in p.grid.items()}}
            | {"chosen_on": list(p.chosen_on.tasks) if p.chosen_on else []}
            for p in PROTOCOLS
        ],
        "profiles": [{"name": p.name, "about": p.about} for p in PROFILES],
    }


def _use_root(root: Path | None) -> None:
    """Set the folder of the suites' pictures, for this process and those that it starts."""
    if root is not None:
        # an environment variable, so that the processes of the runs see it too
        os.environ["INTARSIA_DATA"] = str(root.expanduser().absolute())


def ask(arguments: Mapping[str, Any], report: Report) -> tuple[BenchPlan, How, Path, float | None]:
    """Return the plan that the command line asks for, how to run it, its folder, and its minutes.

    arguments: the options by name, None where one was not given; report: receives a line on the
    plan. The minutes are from --budget or the profile, None = without a limit.

    Raises: UnknownName and ConfigError for what does not exist, before a run begins.
    """
    _use_root(arguments["root"])
    suite, base = suites.suite(arguments["suite"]), profile(arguments["profile"])
    rules = protocol(arguments["protocol"])
    if arguments["calibrate"]:
        rules = _calibrated(rules)
    # The data's place stays empty: each task of the plan fills it in.
    start = Experiment(Pictures("")).changed(**_values(arguments, base, rules))
    # The command line's tasks, else the profile's, else all of the suite.
    names = names_in(arguments["tasks"]) or _those_of(base.tasks, [t.name for t in suite.tasks])
    tasks = [_task(suite, name) for name in names]
    methods = names_in(arguments["methods"]) or methods_of(base, rules)
    seeds: tuple[int, ...] = (
        read("--seeds", arguments["seeds"], tuple[int, ...]) if arguments["seeds"] else base.seeds
    )
    plan = BenchPlan(
        suite,
        tuple(tasks),
        tuple(_headed(arm(name), arguments["heads"], tasks, rules) for name in methods),
        seeds,
        rules,
        start,
        (OWN_HEADS,) * (arguments["heads"] == "each") + rules.departures(start),
    )
    # A method that was named and does not fit the model is an error; one of a profile is left out.
    plan = suited(plan, named=bool(names_in(arguments["methods"])))
    executor = "ray" if arguments["ray"] else "processes"
    running = How(arguments["jobs"], executor, arguments["threads"], not arguments["keep_failed"])
    if arguments["device"] is not None:
        device_named(arguments["device"])  # one that is not there is refused before any run
        running = replace(running, device=arguments["device"])
    out = arguments["out"] or Path("runs") / f"bench-{suite.name}-{rules.name}"
    report(
        f"{len(plan.tasks)} tasks x {len(plan.arms)} methods x {len(plan.seeds)} seeds, "
        f"protocol {rules.name}, {plan.model}; results in {out}"
    )
    return plan, running, out, base.minutes if arguments["budget"] is None else arguments["budget"]


def methods_of(base: Profile, rules: Protocol) -> tuple[str, ...]:
    """Return a profile's methods that suit a protocol; all of the benchmark if it names none.

    base: the profile; rules: the protocol.
    """
    if rules.only:
        return _those_of(base.methods, rules.only)
    return base.methods or tuple(c.name for c in ARMS)


def _calibrated(rules: Protocol) -> Protocol:
    """Return the protocol with a softmax temperature that is fitted on validation data."""
    if rules.grid or rules.only:
        got = f"--protocol {rules.name}"
        want = "honest: the others fit a temperature in their search, or keep no validation part"
        raise ConfigError("--calibrate", got=got, want=want, fix="Leave it out.")
    return replace(rules, calibrate=True)


def _values(arguments: Mapping[str, Any], base: Profile, rules: Protocol) -> dict[str, Any]:
    """Return the settings of all runs: the profile's, then the protocol's, then the
    command line's.
    """
    values = {"model": arguments["model"], **base.values, **rules.starts}
    values |= {name: arguments[name] for name in OWN if arguments[name] is not None}
    if arguments["last_blocks"] is not None:
        # 0 means all blocks.
        last = arguments["last_blocks"] or None
        # If the first blocks stay as they are, their features are computed once and kept.
        values |= {"last_blocks": last, "frozen_once": last is not None}
    fraction, shots = arguments["fraction"], arguments["shots"]
    if fraction is not None and shots is not None:
        subject, got = "size of the training part", f"--fraction {fraction:g} and --shots {shots}"
        raise ConfigError(subject, got=got, want="one of them", fix="Leave out the other.")
    if fraction is not None:
        values["images"] = fraction
    return values | {"shots": shots}


def _task(suite: suites.Suite, name: str) -> suites.SuiteTask:
    """Return a task of a suite by its name, or several as one: "a+b", "joint"."""
    located = suites.find(f"{suite.name}/{name}")
    return located[1] if located else suite.task(name)


def _headed(
    method: BenchArm, heads: str, tasks: Sequence[suites.SuiteTask], rules: Protocol
) -> BenchArm:
    """Return a method with one head over all classes, or with a head for each task."""
    if heads == "one":
        return method
    # A published recipe includes its head: another one would be another method.
    if rules.name == OFFICIAL:
        subject, got = (
            f"--heads each under protocol {rules.name!r}",
            "a recipe with its own objective",
        )
        want, fix = "one head over all classes, as published", "Use --protocol honest or tuned."
        raise ConfigError(subject, got=got, want=want, fix=fix)
    if single := [task.name for task in tasks if task.group != suites.JOINT]:
        got = f"{', '.join(single)}: one task each"
        want = "tasks that are several in one label space"
        fix = "For example: --tasks elpv+mnist, or --tasks joint for all of a suite."
        raise ConfigError("--heads each", got=got, want=want, fix=fix)
    return by_task(method)


def _those_of(names: Sequence[str], available: Sequence[str]) -> tuple[str, ...]:
    """Return the names that are available, or all that are available if none of them is."""
    return tuple(n for n in names if n in available) or tuple(available)


def foretold(plan: BenchPlan, running: How, out: Path, report: Report) -> dict[str, Any]:
    """Estimate the time and memory of a plan, also as a sentence; no run of it is started.

    plan: methods, tasks and seeds; running: jobs and threads; out: folder of the results; report:
    receives a line for each change of the plan. See `estimated` for the keys; "text" is the
    sentence.
    """
    for change in plan.cut:
        report(change)
    estimate = estimated(plan, out, running, report)
    memory = (
        ""
        if estimate["peak_bytes"] is None
        else f", {size(estimate['peak_bytes'])} beside the model"
    )
    cores = (
        "" if estimate["cpu_hours"] is None else f", {estimate['cpu_hours']:.1f} hours of its cores"
    )
    text = (
        f"{estimate['runs']} runs, about {estimate['hours']:.1f} hours on this machine"
        f"{cores}{memory}; by steps timed on the first task, of runs one by one. "
        "The same command without --estimate runs them, and goes on where it was stopped."
    )
    return estimate | {"text": text}


def carry(
    plan: BenchPlan,
    running: How,
    out: Path,
    baseline: str | None,
    budget: float | None,
    report: Report,
) -> dict[str, Any]:
    """Run a plan and write its tables; return all that came out, ready for JSON.

    plan: methods, tasks and seeds; running: jobs and threads; out: folder of the results; baseline:
    method that the others are compared with, None = chosen here; budget: minutes, None = no limit;
    report: receives progress lines.

    Raises: UnknownName, before a run begins, for a baseline that is not in the plan.
    """
    # Refused now rather than after hours of runs.
    reference = _baseline(plan, baseline)
    for change in plan.cut:
        report(change)
    if budget is not None:
        reported = len(plan.cut)
        # A budget cuts seeds, then epochs, by the time that a pilot of each method takes.
        plan = fitted(plan, measured_costs(plan, out, running, report), budget, running.jobs)
        # Cuts before the budget were reported above.
        for cut in plan.cut[reported:]:
            report(f"To fit {budget:g} minutes: {cut}")
    # Finished runs are read from the folder, the others are carried out.
    results = run_plan(plan, out, running, report)
    written = write(results, out, baseline=reference, cut=plan.cut)
    return {
        "plan": plan.asked,
        "failed": [
            f"{r.task.name}, {r.method.name}, seed {r.seed}: {_error(r)}" for r in failures(results)
        ],
        "results": [r.to_dict() for r in results],
        "table": as_markdown(tables(results, reference, out), plan.cut),
        "report": str(next((p for p in written if p.suffix == ".html"), out)),
    }


def _baseline(plan: BenchPlan, baseline: str | None) -> str:
    """Return the name of the method that others are compared with."""
    # Without a baseline named: the benchmark's own if it is in the plan, else the first method.
    names = [c.name for c in plan.arms]
    if baseline is not None and baseline not in names:
        raise UnknownName("baseline", baseline, names)
    # The benchmark's own baseline is the adapter that most papers compare with.
    return baseline or (BASELINE if BASELINE in names else names[0])


def _error(result: records.RunResult) -> str:
    """Return a failed run's error in words."""
    return in_words(result.outcome.error) if isinstance(result.outcome, records.Failed) else ""
