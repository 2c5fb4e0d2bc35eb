"""Many trials, each once, on this machine's processes or a Ray cluster; none stops the others."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..core.checks import at_least, one_of
from ..core.errors import TrainingError
from .on_ray import FreshOnRay, OnRay, threads_for
from .workers import Died, Executor, FreshProcess, Here, OwnProcess
from .workers import Work as Work

S = TypeVar("S")
LOG = logging.getLogger(__name__)
MOST = 6  # trials in a piece: beyond, their memory costs more than they gain


@dataclass(frozen=True)
class Arm(Generic[S]):
    """A contender of a comparison: its name, and the settings that it stands for."""

    name: str
    settings: S


@dataclass(frozen=True)
class Trial:
    """A piece of work: its name in messages, and everything that its result depends on.

    kind: trials of one kind take about as long; "" = of no kind.  stack: trials of one stack may be
    carried out in one piece, as `work` of {"stack": [inputs, ...]} -> {"ends": [...]}, see
    `one_run.run`; "" = on its own.
    """

    name: str
    inputs: Mapping[str, Any]
    kind: str = ""
    stack: str = ""


@dataclass(frozen=True)
class TrialEnd:
    """The end of a trial: its result, or what went wrong."""

    trial: Trial
    result: dict[str, Any] | None
    error: str
    seconds: float


EXECUTORS: Mapping[str, Callable[[int], Executor]] = {
    "processes": OwnProcess,
    "fresh": FreshProcess,
    "ray": OnRay,
    "fresh on ray": FreshOnRay,
    "here": Here,
}


def run_trials(
    trials: Sequence[Trial],
    work: Work,
    *,
    jobs: int,
    done: Callable[[TrialEnd], None],
    begun: Callable[[Trial], None] = lambda _: None,
    executor: str = "processes",
    threads: int | None = None,
) -> None:
    """Run every trial, `jobs` at a time and in their order; call `done` with the result of each.

    A trial is one call of `work`, an importable function of its inputs; one that raises, or loses
    its process, gives a result with an error. begun: called with each trial as it begins.
    executor: a key of EXECUTORS. threads: torch's in each process, None = an equal share of cores.
    Raises: ConfigError for bad numbers; KeyboardInterrupt after the running trials have stopped.
    """
    todo = pieces(trials, jobs)  # trials on one frozen backbone go together
    slots = _slots(executor, jobs, threads, len(todo))
    if executor == "here" and len(slots) == 1:  # in this thread, which Ctrl-C reaches
        for piece in todo:
            _serve(piece, slots[0], work, begun, done)
        return
    # one thread for each slot takes pieces off `waiting`; this thread alone calls `done`
    waiting: queue.SimpleQueue[list[Trial]] = queue.SimpleQueue()
    for piece in todo:
        waiting.put(piece)
    ended: queue.SimpleQueue[TrialEnd | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def serve(slot: Executor) -> None:
        """Run pieces of work until none is left, in a thread of the slot; results go to `ended`."""
        try:
            while not stopped.is_set():
                try:
                    piece = waiting.get_nowait()
                except queue.Empty:
                    break
                _serve(piece, slot, work, begun, ended.put)
        except BaseException as error:
            ended.put(error)  # the main thread raises it
        finally:
            ended.put(None)  # the sign that this slot has ended

    for slot in slots:
        threading.Thread(target=serve, args=(slot,), daemon=True).start()
    open_slots = len(slots)
    try:
        while open_slots:
            end = ended.get()
            if end is None:
                open_slots -= 1
            elif isinstance(end, BaseException):
                raise end
            else:
                done(end)
    finally:
        # after an error too: no slot begins another piece, and processes are closed
        stopped.set()
        for slot in slots:
            slot.close()


def _serve(
    piece: Sequence[Trial],
    slot: Executor,
    work: Work,
    begun: Callable[[Trial], None],
    put: Callable[[TrialEnd], None],
) -> None:
    """Run a piece of work in a slot, and hand the end of each of its trials to `put`."""
    for trial in piece:
        begun(trial)
    for end in _ends_of(slot, work, piece):
        put(end)


def pieces(trials: Sequence[Trial], jobs: int) -> list[list[Trial]]:
    """Group trials into pieces of work, of up to MOST trials with steps that are computed together.

    trials: those with the same `stack` may be together; one without is a piece on its own. jobs:
    pieces that run at the same time; no job is left without a piece by larger groups.
    """
    # a trial without a stack has its own number as key, and so stays on its own
    stacks: dict[object, list[Trial]] = {}
    for number, trial in enumerate(trials):
        stacks.setdefault(trial.stack or number, []).append(trial)
    groups: list[list[Trial]] = []
    for members in stacks.values():
        # ceiling divisions: small enough for memory, and enough pieces to occupy all jobs
        parts = max(-(-len(members) // MOST), min(len(members), -(-jobs // len(stacks))))
        size = -(-len(members) // parts)
        groups += [members[i : i + size] for i in range(0, len(members), size)]
    return groups


def _slots(executor: str, jobs: int, threads: int | None, trials: int) -> list[Executor]:
    """Build the executors; each runs one piece of work at a time."""
    at_least("--jobs", jobs, 1, "Leave it out.")
    one_of("executor", executor, EXECUTORS)
    number = min(jobs, trials)
    if executor in ("ray", "fresh on ray"):
        share = threads_for(number, threads) if number else 1
    else:
        # without a number, this machine's cores are divided among the jobs
        share = threads or max(1, (os.cpu_count() or 1) // jobs)
    return [EXECUTORS[executor](share) for _ in range(number)]


@dataclass
class TimeLeft:
    """Estimate of the time that is left, from the mean time of the ended trials of each kind.

    A kind with no piece ended so far takes the mean of all.
    """

    trials: Sequence[Trial]
    jobs: int
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def ended(self) -> int:
        return sum(map(len, self.seconds.values()))

    def add(self, end: TrialEnd) -> None:
        self.seconds[end.trial.kind].append(end.seconds)

    def left(self) -> float | None:
        """Estimate the seconds until all trials have ended; None before any has.

        Each kind of trial counts with the mean time of its ended ones, or with the mean of all.
        """
        if not self.ended:
            return None
        means = {kind: sum(took) / len(took) for kind, took in self.seconds.items()}
        usual = sum(map(sum, self.seconds.values())) / self.ended
        remaining = Counter(trial.kind for trial in self.trials)
        # what remains of each kind, at the kind's own mean time
        remaining.subtract({kind: len(took) for kind, took in self.seconds.items()})
        total = sum(n * means.get(kind, usual) for kind, n in remaining.items())
        # jobs run side by side, but at the end there are fewer trials than jobs
        return total / max(1, min(self.jobs, remaining.total()))


def run_told(
    trials: Sequence[Trial],
    work: Work,
    *,
    jobs: int,
    done: Callable[[TrialEnd], None],
    describe: Callable[[Mapping[str, Any]], str],
    report: Callable[[str], None],
    executor: str = "processes",
    threads: int | None = None,
) -> None:
    """Run trials (single calls of a function); report each result and how long the rest takes.

    jobs: trials at a time. describe: puts a result into a few words. executor: where they run, a
    key of EXECUTORS. threads: torch threads of each process, None = an equal share of the cores.
    """
    # means are kept for each kind, since methods differ in time more than seeds do
    pace = TimeLeft(trials, jobs)
    start = time.monotonic()

    def ended(end: TrialEnd) -> None:
        """Pass on a trial's result; report its outcome, its time, and the time that is left."""
        done(end)
        pace.add(end)
        seconds_left = pace.left() or 0.0
        outcome = f"FAILED, {end.error}" if end.result is None else describe(end.result)
        took = "" if end.result is None else f", {end.seconds:.0f} s"
        report(
            f"[{pace.ended}/{len(trials)}] {end.trial.name}: {outcome}{took}; "
            f"{(time.monotonic() - start) / 60:.0f} min gone, about {seconds_left / 60:.0f} left"
        )

    if trials:
        run_trials(trials, work, jobs=jobs, done=ended, executor=executor, threads=threads)


def refuse_failed(errors: Sequence[str], count: int) -> None:
    """Refuse to continue if trials failed.  Raises: TrainingError with the first."""
    if errors:
        want, fix = "a result of each", "Mend it and call this again: finished trials are kept."
        raise TrainingError(f"{len(errors)} of {count} trials", got=errors[0], want=want, fix=fix)


def _ends_of(slot: Executor, work: Work, piece: Sequence[Trial]) -> list[TrialEnd]:
    """Run a piece's trials together in one executor; return their results."""
    if len(piece) == 1:
        return [_end_of(slot, work, piece[0])]
    start = time.perf_counter()
    try:
        ends = slot.run(work, {"stack": [dict(trial.inputs) for trial in piece]})["ends"]
    except Exception as error:
        # one member may be at fault, or memory for all: alone, the others can succeed
        first, *_, last = (trial.name for trial in piece)
        LOG.warning(
            "%d trials in one piece, %s to %s, failed (%s); each is tried by itself.",
            *(len(piece), first, last, error),
        )
        return [_end_of(slot, work, trial) for trial in piece]
    # trials of one piece step together, so that each counts with its share of the time
    share = (time.perf_counter() - start) / len(piece)
    return [TrialEnd(t, e["result"], e["error"], share) for t, e in zip(piece, ends, strict=True)]


def _end_of(slot: Executor, work: Work, trial: Trial) -> TrialEnd:
    """Run one trial in an executor; its own error, or a lost process, is recorded in the result."""
    start = time.perf_counter()
    result, error = None, ""
    try:
        result = slot.run(work, trial.inputs)
    except Died as death:
        error = str(death)
    except Exception as known:
        error = str(known)
    return TrialEnd(trial, result, error, time.perf_counter() - start)
