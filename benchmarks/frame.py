"""What the benchmarks share: interleaved timing, ratios, and the page."""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from intarsia.formats.rivals import RuntimeFigures, TimedRun
from intarsia.kernels import native
from intarsia.train.record import machine, versions

PAGES = Path(__file__).parents[1] / "docs" / "benchmarks"
Job = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """A ratio of two cases."""

    what: str
    over: str
    under: str


@dataclass(frozen=True)
class Spent:
    """Medians over the runs of a case, in seconds."""

    cpu: float
    wall: float


def interleaved(jobs: Mapping[str, Job], reps: int) -> dict[str, Spent]:
    """What each job takes, over `reps` runs after one that does not count, in an order that turns.

    A machine with a load that changes then slows all of them down.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    names = list(jobs)
    for rep in range(-1, reps):
        shift = rep % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            cpu, wall = time.process_time(), time.perf_counter()
            jobs[name]()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if rep >= 0:
                times[name].append(spent)
    return {n: Spent(*map(statistics.median, zip(*t, strict=True))) for n, t in times.items()}


def operations(job: Job) -> int:
    """Floating-point operations of matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops()


def peak_over(step: Job, times: int = 3) -> int:
    """Bytes by which steps raise this process's peak above the memory it holds now."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of building, is forgotten
    before = psutil.Process().memory_info().rss
    for _ in range(times):
        step()
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 - before


def ratio(row: Row, times: Mapping[str, Spent]) -> list[str]:
    """A line: what, the ratio of wall times, the ratio of CPU times."""
    over, under = times[row.over], times[row.under]
    return [row.what, f"{over.wall / under.wall:.3f}", f"{over.cpu / under.cpu:.3f}"]


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A table."""
    head = list(head)
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]


def parser(doc: str | None, *, threads: int, reps: int) -> argparse.ArgumentParser:
    """The arguments that all have."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--threads", type=int, default=threads)
    made.add_argument("--reps", type=int, default=reps)
    made.add_argument("--write", action="store_true", help="also write the page below docs")
    return made


def read(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, and the machine's load before the run."""
    args = made.parse_args()
    args.load = psutil.getloadavg()[0]
    torch.set_num_threads(args.threads)
    return args


def publish(title: str, about: str, body: Iterable[str], args: argparse.Namespace) -> None:
    """Print a page, with the machine and the command; and write it, if asked to."""
    found = versions()
    run = (
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()['processor']}, torch {found['torch']}, "
        f"Python {found['python']}, load before the run {args.load:.1f}: `{command()}`"
    )
    page = PAGES / f"{Path(sys.argv[0]).stem}.md"
    # written by hand: read it again with the new figures
    answer = re.findall(r"^\*\*In short:\*\* .*$", page.read_text() if page.exists() else "", re.M)
    text = "\n\n".join([f"# {title}", *answer, about, run, "\n".join([*body, ""])])
    print(text)
    if args.write:
        PAGES.mkdir(exist_ok=True)
        page.write_text(text)


def command() -> str:
    """The command line of this run."""
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def timed_run(quality: str, choices: Sequence[RuntimeFigures], threads: int) -> TimedRun:
    """This run with its figures, as rivals.json has it.  quality: the measure's name."""
    number = "one thread" if threads == 1 else f"{threads} threads"
    where = f"{number} of {machine()['processor']}, CPU time, all in turns"
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    return TimedRun(day, where, native.instructions(), command(), quality, choices)
