"""Confirm a record: one of its seeds, run again with today's code, has the stored value.

A training is deterministic on one processor with as many threads. Code that computes anything else
shows in the first digits of any seed, so that one seed tells whether a record of older code is
what today's code computes; see `ledger.Record.older`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from intarsia.core.cache import cache_dir
from intarsia.core.errors import ConfigError, TrainingError

from ..kit import TIMED, Report, Study
from ..kit.provenance import ROOT, commit, unpack
from .bars import Line, append
from .designs import COMPARISONS
from .ledger import COMMAND, Record, code_of, machine

# what computes the same differs in no digit, or, where a sum has another order, in the last ones
CLOSE, NEAR_ZERO = 1e-6, 1e-9
SHARED = ("packages", "weights", "suites")  # folders of the cache that hold what others published
# runs seeds of a claim with the code of any commit; the last line has the values
PROGRAM = """
import json, sys, torch
from intarsia_lab.claims import claim
key, seeds, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
told = lambda line: print(line, file=sys.stderr, flush=True)
result = claim(key).measure(tuple(map(int, seeds.split(","))), told)
print(json.dumps(list(result.values)))
"""
Values = tuple[float, ...]
Run = Callable[[Path, str, str, Sequence[int], Report], Values]


def confirm(
    study: Study,
    record: Record,
    page: Path,
    *,
    seeds: Sequence[int] | None = None,
    run: Run | None = None,
    report: Report = print,
) -> Line:
    """Run a seed of a record again with today's code, and add what comes out to the ledger.

    study: the claim; record: its stored one; page: of the claims, beside which the ledger lies;
    seeds: of the record, by default one, see `telling`; run: what runs seeds with the code of a
    folder, `run_seeds` by default. Where the values differ, and the record names a commit, its code
    runs the seeds as well: the processor may be another one.

    Returns the line of the ledger: *equal* is None where nothing is decided, and *why* says why.
    Raises: ConfigError for a record that one seed cannot confirm; TrainingError if the run fails.
    """
    run = run or run_seeds
    refuse(study, record, seeds)
    name = clean_commit(page)
    chosen = tuple(seeds) if seeds is not None else (telling(record),)
    code = code_of(study.key)  # before the run, as the commit is
    got = run(ROOT, name, study.key, chosen, report)
    stored = stored_values(record, chosen, got)
    equal, then, why = _same(got, stored), None, ""
    if not equal:
        then, why = _then(record, chosen, run, report)
        equal = _same(got, then) if then is not None else (None if why else False)
    line = {
        "line": "confirmation",
        "claim": study.key,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": name,
        "code": code,
        "record": record.digest,
        "seeds": list(chosen),
        "stored": list(stored),
        "got": list(got),
        "then": None if then is None else list(then),
        "machine": machine(),
        "equal": equal,
        "why": why,
    }
    append(page.with_suffix(""), [line])
    return line


def refuse(study: Study, record: Record, seeds: Sequence[int] | None = None) -> None:
    """Refuse a record that a seed of it cannot confirm.

    study: its claim of today; seeds: those asked for.

    Raises: ConfigError for a measured time, another statistic than today's, values that are not
    those of seeds, and seeds that it does not have.
    """
    again = f"Run it again whole: {COMMAND} {study.key}"
    subject = f"record of {study.key}"
    if study.control is TIMED:
        want = "a figure that the same code computes again"
        raise ConfigError(subject, got="a measured time", want=want, fix=again)
    today = f"against {study.baseline}, {study.sense}"
    if (judged := f"against {record.baseline}, {record.target.split()[0]}") != today:
        raise ConfigError(subject, got=judged, want=today, fix=again)
    if len(record.values) % len(record.seeds):
        got = f"{len(record.values)} values of {len(record.seeds)} seeds"
        raise ConfigError(subject, got=got, want="as many values of each seed", fix=again)
    if unknown := [seed for seed in seeds or () if seed not in record.seeds]:
        listed = ", ".join(map(str, record.seeds))
        fix = f"For example: --seeds {record.seeds[0]}"
        raise ConfigError("--seeds", got=unknown, want=f"seeds of the record: {listed}", fix=fix)


def clean_commit(page: Path) -> str:
    """Return the commit of this checkout, whatever changed in the page of claims and its folder.

    The ledger grows with each confirmation, and no figure comes from it.
    Raises: ConfigError for other changes, and outside of a checkout.
    """
    name = commit(page, page.with_suffix(""))
    if not name or name.endswith("+"):
        raise ConfigError(
            "--confirm",
            got="a checkout with changes that are not committed" if name else "no checkout",
            want="a clean commit, which the confirmation can name",
            fix="Commit first." if name else "Clone the repository, and run it there.",
        )
    return name


def telling(record: Record) -> int:
    """Return the seed to run: the first with a value that no other seed has, else the first."""
    by_seed = [stored_values(record, (seed,)) for seed in record.seeds]
    times = Counter(by_seed)
    # counts and shares of few items are equal by chance; a rare one seldom
    return next((s for s, v in zip(record.seeds, by_seed, strict=True) if times[v] == 1), 
                record.seeds[0])


def stored_values(record: Record, seeds: Sequence[int], got: Values | None = None) -> Values:
    """Return a record's values of some seeds: side by side, or task by task if that fits better.

    got: what a run of these seeds returned. Raises: ConfigError if they are not as many.
    """
    places = [record.seeds.index(seed) for seed in seeds]
    count, each = len(record.seeds), len(record.values) // len(record.seeds)
    by_seed = tuple(record.values[p * each + t] for p in places for t in range(each))
    by_task = tuple(record.values[t * count + p] for t in range(each) for p in places)
    if got is not None and len(got) != len(by_seed):
        raise ConfigError(
            f"record of {record.key}",
            got=f"{len(by_seed)} values of these seeds, and {len(got)} of their run",
            want="values that belong to seeds",
            fix=f"Run it again whole: {COMMAND} {record.key}",
        )
    return by_task if got is not None and _same(got, by_task) else by_seed


def _same(ours: Values, others: Values) -> bool:
    """Return whether values are equal in all digits that the same computation has alike."""
    pairs = zip(ours, others, strict=True)
    return all(math.isclose(a, b, rel_tol=CLOSE, abs_tol=NEAR_ZERO) for a, b in pairs)


def _then(
    record: Record, seeds: Sequence[int], run: Run, report: Report
) -> tuple[Values | None, str]:
    """Return the values of seeds by a record's own commit, here; else None, and why they differ.

    The reason is "" where nothing but the code can differ.
    """
    if record.commit and not record.commit.endswith("+"):
        with tempfile.TemporaryDirectory() as folder:
            if unpack(record.commit, Path(folder)):
                report(f"Unequal: the code of {record.commit} runs, too.")
                try:
                    return run(Path(folder), record.commit, record.key, seeds, report), ""
                except TrainingError as error:
                    report(f"The code of {record.commit} does not run here: {error.got}")
    if COMPARISONS.get(record.key, 1) > 1:
        return None, "with one seed another of its comparisons may be the worst"
    if _processor(record.machine) != _processor(machine()):
        return None, "its processor was another one, and its code cannot be run"
    return None, ""


def _processor(machine: str) -> str:
    """Return what decides how a machine rounds: its processor, cores and torch."""
    return machine.split(", intarsia")[0]


def run_seeds(tree: Path, name: str, key: str, seeds: Sequence[int], report: Report) -> Values:
    """Return a claim's values of some seeds, run in a process of its own with the code of a folder.

    tree: a checkout; name: its commit, whose results alone are read back; report: gets lines.
    Raises: TrainingError if the run fails.
    """
    paths = [str(tree / part) for part in ("src", "lab/src")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        "INTARSIA_HOME": str(_home(name)),
    }
    command = (sys.executable, "-c", PROGRAM, key, ",".join(map(str, seeds)), f"{torch.get_num_threads()}")
    with subprocess.Popen(
        command, cwd=tree, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        said = ""
        for text in process.stderr:
            said = text.rstrip() or said
            report(said)
        printed = process.stdout.read().splitlines()
    if process.returncode or not printed:
        raise TrainingError(
            f"{key} of commit {name}", got=said or "no values", want="a value of each seed",
            fix="Look at its lines above; a claim that wants two seeds: --seeds 0,1",
        )
    return tuple(json.loads(printed[-1]))


def _home(name: str) -> Path:
    """Return a cache for the results of one commit, with the files of others that are here."""
    home = cache_dir() / "at" / name
    home.mkdir(parents=True, exist_ok=True)
    for folder in SHARED:
        (cache_dir() / folder).mkdir(parents=True, exist_ok=True)
        if not (home / folder).exists():
            (home / folder).symlink_to(cache_dir() / folder, target_is_directory=True)
    return home
