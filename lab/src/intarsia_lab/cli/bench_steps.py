"""What `intarsia bench` does: read what was asked, run the plan, write its tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from intarsia.choosing.arms import ARMS, BenchArm, arm, by_task
from intarsia.cli.shell import in_words
from intarsia.core.checks import at_least
from intarsia.core.errors import ConfigError, UnknownName
from intarsia.core.schema import read
from intarsia.experiments.experiment import Experiment, Pictures
from intarsia.reports.numbers import size
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

Report = Callable[[str], None]
BASELINE = "adaptformer"
OWN = ("size", "epochs", "precision")  # options that stand for values of an Experiment
METHOD = ("method", "lr", "conv_lr", "objective", "half")  # what --list says of one
HEADS = ("one", "each")
OWN_HEADS = "Each task has a head of its own: a picture's loss sees the classes of its own task."


def listed(root: Path | None) -> dict[str, Any]:
    """Suites, tasks and what is on disk; methods, protocols and profiles."""
    _use_root(root)
    return {
        "suites": suites.describe(),
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
    if root is not None:
        # an environment variable, so that the processes of the runs see it too
        os.environ["INTARSIA_DATA"] = str(root.expanduser().absolute())


def ask(given: Mapping[str, Any], report: Report) -> tuple[BenchPlan, How, Path, float | None]:
    """The plan that was asked for, how to run it, the folder of its results, and its minutes.

    Raises: UnknownName and ConfigError for what does not exist, before a run begins.
    """
    _use_root(given["root"])
    suite, base = suites.suite(given["suite"]), profile(given["profile"])
    rules = protocol(given["protocol"])
    if given["calibrate"]:
        rules = _calibrated(rules)
    start = Experiment(Pictures("")).changed(**_values(given, base, rules))
    names = _names(given["tasks"]) or _those_of(base.tasks, [t.name for t in suite.tasks])
    tasks = [_task(suite, name) for name in names]
    methods = _names(given["methods"]) or methods_of(base, rules)
    seeds: tuple[int, ...] = (
        read("--seeds", given["seeds"], tuple[int, ...]) if given["seeds"] else base.seeds
    )
    plan = BenchPlan(
        suite,
        tuple(tasks),
        tuple(_headed(arm(name), given["heads"], tasks, rules) for name in methods),
        seeds,
        rules,
        start,
        (OWN_HEADS,) * (given["heads"] == "each") + rules.departures(start),
    )
    plan = suited(plan, named=bool(_names(given["methods"])))
    where = "ray" if given["ray"] else "processes"
    how = How(given["jobs"], where, given["threads"], not given["keep_failed"])
    if given["device"] is not None:
        device_named(given["device"])  # one that is not there is refused before any run
        how = replace(how, device=given["device"])
    out = given["out"] or Path("runs") / f"bench-{suite.name}-{rules.name}"
    report(
        f"{len(plan.tasks)} tasks x {len(plan.arms)} methods x {len(plan.seeds)} seeds, "
        f"protocol {rules.name}, {plan.model}; results in {out}"
    )
    return plan, how, out, base.minutes if given["budget"] is None else given["budget"]


def methods_of(base: Profile, rules: Protocol) -> tuple[str, ...]:
    """The methods of a profile that a protocol is for; all of the benchmark's, if it names none."""
    if rules.only:
        return _those_of(base.methods, rules.only)
    return base.methods or tuple(c.name for c in ARMS)


def _calibrated(rules: Protocol) -> Protocol:
    """Raises: ConfigError for a protocol that has a temperature without, or can have none."""
    if rules.grid or rules.only:
        got = f"--protocol {rules.name}"
        want = "honest: the others fit a temperature in their search, or keep no validation part"
        raise ConfigError("--calibrate", got=got, want=want, fix="Leave it out.")
    return replace(rules, calibrate=True)


def _values(given: Mapping[str, Any], base: Profile, rules: Protocol) -> dict[str, Any]:
    """What all places share: the profile's, over them the protocol's, over them what was given.

    Raises: ConfigError for a share and shots together, or what is no share.
    """
    values = {"model": given["model"], **base.values, **rules.starts}
    values |= {name: given[name] for name in OWN if given[name] is not None}
    if given["last_blocks"] is not None:
        last = given["last_blocks"] or None
        values |= {"last_blocks": last, "frozen_once": last is not None}
    fraction, shots = given["fraction"], given["shots"]
    if fraction is not None and shots is not None:
        what, got = "size of the training part", f"--fraction {fraction:g} and --shots {shots}"
        raise ConfigError(what, got=got, want="one of them", fix="Leave out the other.")
    if shots is not None:
        at_least("--shots", shots, 1, fix="Try 5.")
    if fraction is not None:
        values["images"] = fraction
    return values | {"shots": shots}


def _task(suite: suites.Suite, name: str) -> suites.SuiteTask:
    """One of a suite, or several as one: "a+b", "joint".  Raises: UnknownName, ConfigError."""
    found = suites.find(f"{suite.name}/{name}")
    return found[1] if found else suite.task(name)


def _headed(
    found: BenchArm, heads: str, tasks: Sequence[suites.SuiteTask], rules: Protocol
) -> BenchArm:
    """A method with the heads that were asked for.

    Raises: UnknownName for other words; ConfigError where a head for each task cannot be.
    """
    if heads not in HEADS:
        raise UnknownName("--heads", heads, HEADS)
    if heads == "one":
        return found
    if rules.name == OFFICIAL:
        what, got = f"--heads each under protocol {rules.name!r}", "a recipe with its own objective"
        want, fix = "one head over all classes, as published", "Use --protocol honest or tuned."
        raise ConfigError(what, got=got, want=want, fix=fix)
    if single := [task.name for task in tasks if task.group != suites.JOINT]:
        got = f"{', '.join(single)}: one task each"
        want = "tasks that are several in one label space"
        fix = "For example: --tasks elpv+mnist, or --tasks joint for all of a suite."
        raise ConfigError("--heads each", got=got, want=want, fix=fix)
    return by_task(found)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(n.strip() for n in (text or "").split(",") if n.strip())


def _those_of(chosen: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """A profile's names that the suite has; all of them, where it names none of the suite's."""
    return tuple(n for n in chosen if n in known) or tuple(known)


def foretold(plan: BenchPlan, how: How, out: Path, report: Report) -> dict[str, Any]:
    """What a plan would take, and the same in a sentence; nothing of it is run."""
    for told in plan.cut:
        report(told)
    found = estimated(plan, out, how, report)
    memory = (
        "" if found["peak_bytes"] is None else f", {size(found['peak_bytes'])} beside the model"
    )
    cores = "" if found["cpu_hours"] is None else f", {found['cpu_hours']:.1f} hours of its cores"
    text = (
        f"{found['runs']} runs, about {found['hours']:.1f} hours on this machine{cores}{memory}; "
        "by steps timed on the first task, of runs one by one. The same command without --estimate "
        "runs them, and goes on where it was stopped."
    )
    return found | {"text": text}


def carry(
    plan: BenchPlan, how: How, out: Path, baseline: str | None, budget: float | None, report: Report
) -> dict[str, Any]:
    """Run a plan and write its tables; what happened, ready for JSON.

    Raises: UnknownName, before a run begins, for a baseline that is not in the plan.
    """
    held = _baseline(plan, baseline)
    for told in plan.cut:
        report(told)
    if budget is not None:
        known = len(plan.cut)
        plan = fitted(plan, measured_costs(plan, out, how, report), budget, how.jobs)
        for cut in plan.cut[known:]:
            report(f"To fit {budget:g} minutes: {cut}")
    found = run_plan(plan, out, how, report)
    written = write(found, out, baseline=held, cut=plan.cut)
    return {
        "plan": plan.asked,
        "failed": [
            f"{r.task.name}, {r.method.name}, seed {r.seed}: {_error(r)}" for r in failures(found)
        ],
        "results": [r.to_dict() for r in found],
        "table": as_markdown(tables(found, held, out), plan.cut),
        "report": str(next((p for p in written if p.suffix == ".html"), out)),
    }


def _baseline(plan: BenchPlan, asked: str | None) -> str:
    names = [c.name for c in plan.arms]
    if asked is not None and asked not in names:
        raise UnknownName("baseline", asked, names)
    return asked or (BASELINE if BASELINE in names else names[0])


def _error(found: records.RunResult) -> str:
    return in_words(found.outcome.error) if isinstance(found.outcome, records.Failed) else ""
