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
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch

from intarsia.core.cache import cache_dir
from intarsia.core.errors import ConfigError

from ..kit import TIMED, Report, Study
from ..kit.provenance import commit, unpack
from .bars import Line, append
from .designs import COMPARISONS
from .ledger import COMMAND, Record, code_of, confirmations, machine, read_stored

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
Then = Callable[[str, str, Sequence[int], Report], Values | None]


def confirm(
    study: Study,
    record: Record,
    folder: Path,
    name: str,
    *,
    seeds: Sequence[int] | None = None,
    then: Then | None = None,
    report: Report = print,
) -> Line:
    """Run a seed of a record again with today's code, and add what comes out to the ledger.

    study: the claim; record: its stored one; folder: of the records; name: the commit of today's
    code, see `clean_commit`; seeds: of the record, by default one, see `telling`; report: receives
    progress lines. Where the values differ, and the record names a commit, its code runs the seeds
    as well, by `then`, which is `by_commit`: another processor rounds otherwise.

    Returns the line of the ledger: *equal* is None where nothing is decided, and *why* says why.
    Raises: ConfigError for a record that one seed cannot confirm.
    """
    refuse(study, record, seeds)
    run_seeds = tuple(seeds) if seeds is not None else (telling(record),)
    code = code_of(study.key)  # before the run, as the commit is
    with _results_of(name):
        got = study.measure(run_seeds, report).values
    stored = stored_values(record, run_seeds, got)
    equal, earlier, reason = same(got, stored), None, ""
    if not equal:
        if record.commit and not record.commit.endswith("+"):
            earlier = (then or by_commit)(record.commit, record.key, run_seeds, report)
        reason = "" if earlier is not None else _undecided(record)
        equal = same(got, earlier) if earlier is not None else None if reason else False
    line = {
        "line": "confirmation",
        "claim": study.key,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": name,
        "code": code,
        "record": record.digest,
        "seeds": list(run_seeds),
        "stored": list(stored),
        "got": list(got),
        "then": None if earlier is None else list(earlier),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "equal": equal,
        "why": reason,
    }
    append(folder, [line])
    return line


def refuse(study: Study, record: Record, seeds: Sequence[int] | None = None) -> None:
    """Refuse a record that a seed of it cannot confirm.

    study: its claim of today; seeds: those asked for.

    Raises: ConfigError for a measured time, another statistic than today's, values that are not
    those of seeds, and seeds that it does not have.
    """
    if refusal := _refusal(study, record):
        got, want = refusal
        fix = f"Run it again whole: {COMMAND} {study.key}"
        raise ConfigError(f"record of {study.key}", got=got, want=want, fix=fix)
    if unknown := [seed for seed in seeds or () if seed not in record.seeds]:
        listed = ", ".join(map(str, record.seeds))
        fix = f"For example: --seeds {record.seeds[0]}"
        raise ConfigError("--seeds", got=unknown, want=f"seeds of the record: {listed}", fix=fix)


def _refusal(study: Study, record: Record) -> tuple[str, str] | None:
    """Return what a record has that a seed cannot confirm, and what is wanted."""
    if study.control is TIMED:
        return "a measured time", "a figure that the same code computes again"
    today = f"against {study.baseline}, {study.sense}"
    judged = f"against {record.baseline}, {record.target.split()[0]}"
    if judged != today:
        return judged, today
    if len(record.values) % len(record.seeds):
        got = f"{len(record.values)} values of {len(record.seeds)} seeds"
        return got, "as many values of each seed"
    return None


def waiting(
    studies: Sequence[Study], records: Mapping[str, Record], lines: Sequence[Line]
) -> list[tuple[float, Study]]:
    """Return what a seed could confirm and has not, and the seconds that it may take, least first.

    records: by claim; lines: the ledger. What was tried with today's code is left out.
    """
    listed: list[tuple[float, Study]] = []
    for study in studies:
        record = records.get(study.key)
        if record is None or record.counts or record.verdict == "withdrawn":
            continue
        if not _refusal(study, record) and not confirmations(record, lines):
            # a run from cached results says nothing of the time
            seconds = record.seconds / len(record.seeds)
            if read_stored(study, record):
                seconds = 60 * study.minutes / len(study.seeds)
            listed.append((seconds, study))
    return sorted(listed, key=lambda pair: pair[0])


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
    return next(
        (s for s, v in zip(record.seeds, by_seed, strict=True) if times[v] == 1), record.seeds[0]
    )


def stored_values(record: Record, seeds: Sequence[int], got: Values | None = None) -> Values:
    """Return a record's values of some seeds: side by side, or task by task if that fits better.

    got: what a run of these seeds returned. Raises: ConfigError if they are not as many.
    """
    places = [record.seeds.index(seed) for seed in seeds]
    count, share = len(record.seeds), len(record.values) // len(record.seeds)
    by_seed = tuple(record.values[p * share + t] for p in places for t in range(share))
    by_task = tuple(record.values[t * count + p] for t in range(share) for p in places)
    if got is not None and len(got) != len(by_seed):
        raise ConfigError(
            f"record of {record.key}",
            got=f"{len(by_seed)} values of these seeds, and {len(got)} of their run",
            want="values that belong to seeds",
            fix=f"Run it again whole: {COMMAND} {record.key}",
        )
    return by_task if got is not None and same(got, by_task) else by_seed


def same(ours: Values, theirs: Values) -> bool:
    """Return whether values are equal in all digits that the same computation has alike."""
    pairs = zip(ours, theirs, strict=True)
    return all(math.isclose(a, b, rel_tol=CLOSE, abs_tol=NEAR_ZERO) for a, b in pairs)


def _undecided(record: Record) -> str:
    """Return why an unequal value says nothing of a record's code; "" where it does."""
    if COMPARISONS.get(record.key, 1) > 1:
        return "with one seed another of its comparisons may be the worst"
    if _rounding(record.machine) != _rounding(machine()):
        return "the record is of another processor"
    return ""


def _rounding(line: str) -> str:
    """Return what decides how a machine rounds: its processor, cores and torch."""
    return line.split(", intarsia")[0]


def by_commit(name: str, key: str, seeds: Sequence[int], report: Report) -> Values | None:
    """Return a claim's values of some seeds by the code of a commit, in a process of its own.

    report: gets its lines. None where this repository lacks the commit, or its code fails here.
    """
    with tempfile.TemporaryDirectory() as folder, _results_of(name):
        tree = Path(folder)
        if not unpack(name, tree):
            report(f"{name} is no commit of this repository.")
            return None
        report(f"Unequal: the code of {name} runs, too.")
        paths = [str(tree / part) for part in ("src", "lab/src")]
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        command = [sys.executable, "-c", PROGRAM, key, ",".join(map(str, seeds))]
        with subprocess.Popen(
            [*command, str(torch.get_num_threads())],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            assert process.stdout is not None
            last = ""
            for text in process.stdout:
                last = text.rstrip() or last
                report(last)
    # what stops it, such as another layout of older commits, is no evidence
    return tuple(json.loads(last)) if process.returncode == 0 else None


@contextmanager
def _results_of(name: str) -> Generator[None]:
    """Keep results in a cache of one commit, and read no others; see SHARED for what is read."""
    home, before = cache_dir() / "at" / name, os.environ.get("INTARSIA_HOME")
    for folder in SHARED:
        (cache_dir() / folder).mkdir(parents=True, exist_ok=True)
        home.mkdir(parents=True, exist_ok=True)
        if not (home / folder).exists():
            (home / folder).symlink_to(cache_dir() / folder, target_is_directory=True)
    os.environ["INTARSIA_HOME"] = str(home)
    try:
        yield
    finally:
        if before is None:
            del os.environ["INTARSIA_HOME"]
        else:
            os.environ["INTARSIA_HOME"] = before
