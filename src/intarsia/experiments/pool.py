"""Many trials, each once, on this machine's processes or a Ray cluster; none stops the others."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import ConfigError, IntarsiaError, MissingExtra

Work = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Inputs -> result, both JSON-ready; importable by name, and run in a process of its own."""


@dataclass(frozen=True)
class Trial:
    """One piece of work: how it is called in messages, and everything it depends on."""

    name: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The end of a trial: its result, or what went wrong."""

    trial: Trial
    result: dict[str, Any] | None
    error: str
    seconds: float


class Executor(Protocol):
    """Runs one piece of work at a time; `slots` of them stand beside each other."""

    def run(self, work: Work, inputs: Mapping[str, Any]) -> dict[str, Any]: ...

    def close(self) -> None: ...


class Died(Exception):
    """A process that ended before its work did."""


class Here:
    """This very process: for a debugger, and for work that is shorter than a process's start."""

    def __init__(self, threads: int) -> None:
        pass

    def run(self, work: Work, inputs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return work(inputs)
        except Exception as error:
            raise _sendable(error) from error

    def close(self) -> None:
        pass


class OwnProcess:
    """A process that takes one trial after another, so that what it holds in memory is shared.

    It ends with the process that made it, however that ends.  threads: of torch in it.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def run(self, work: Work, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if self._pipe is None:
            # spawned: a fork of a process with threads can hang
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self.threads))
            self._process.start()
            theirs.close()
        try:
            self._pipe.send((work, dict(inputs)))
            right, found = self._pipe.recv()
        except (EOFError, OSError) as error:
            code = self._ended()
            raise Died(
                f"its process ended with exit code {code}"
                + (", killed: most often memory ran out; try fewer --jobs" if code == -9 else "")
            ) from error
        if right:
            return found
        raise found

    def _ended(self) -> int | None:
        process, self._process, self._pipe = self._process, None, None
        if process is None:
            return None
        process.join(10)
        return process.exitcode

    def close(self) -> None:
        """Let it finish if it is idle; else ask it to stop, as Ctrl-C does, then make it."""
        process, pipe = self._process, self._pipe
        if process is None or pipe is None:
            return
        self._process = self._pipe = None
        pipe.close()  # an idle one sees the end of its work
        process.join(5)
        if process.is_alive() and process.pid:
            os.kill(process.pid, signal.SIGINT)
            process.join(30)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(pipe: Connection, threads: int) -> None:
    """Work until the pipe ends; end at once when the parent does."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        assert parent is not None
        wait([parent.sentinel])
        os._exit(1)  # a trial half done goes on when the runner is started again

    threading.Thread(target=follow, daemon=True).start()
    _begin(threads)
    while True:
        try:
            work, inputs = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            answer = True, work(inputs)
        except BaseException as error:
            answer = False, _sendable(error)
        with contextlib.suppress(OSError):  # nobody listens any more
            pipe.send(answer)


def _sendable(error: BaseException) -> BaseException:
    """The error, or its text where it cannot travel between processes."""
    if isinstance(error, IntarsiaError | KeyboardInterrupt):
        return error
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return RuntimeError(f"{type(error).__name__}: {error} ({place})")


class OnRay:
    """A slot of a Ray cluster: `pip install intarsia[ray]`; RAY_ADDRESS names one of many machines.

    Every machine needs intarsia and sees the results' folder at the same path.
    """

    def __init__(self, threads: int) -> None:
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise MissingExtra("ray", "ray") from error
        self._ray = ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False, configure_logging=False)
        self._worker: Any = None
        self.threads = threads

    def run(self, work: Work, inputs: Mapping[str, Any]) -> dict[str, Any]:
        ray = self._ray
        if self._worker is None:
            actor = ray.remote(num_cpus=self.threads)(_RayWorker)
            self._worker = actor.remote(self.threads)
        try:
            right, found = ray.get(self._worker.run.remote(work, dict(inputs)))
        except ray.exceptions.RayActorError as error:
            self._worker = None
            raise Died(f"its worker was lost: {error}") from error
        if right:
            return found
        raise found

    def close(self) -> None:
        if self._worker is not None:
            self._ray.kill(self._worker)
            self._worker = None


class _RayWorker:
    def __init__(self, threads: int) -> None:
        _begin(threads)

    def run(self, work: Work, inputs: Mapping[str, Any]) -> tuple[bool, Any]:
        try:
            return True, work(inputs)
        except BaseException as error:
            return False, _sendable(error)


def _begin(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


EXECUTORS: Mapping[str, Callable[[int], Executor]] = {
    "processes": OwnProcess, "ray": OnRay, "here": Here,
}  # fmt: skip


def run_trials(
    trials: Sequence[Trial],
    work: Work,
    *,
    jobs: int,
    done: Callable[[Outcome], None],
    begun: Callable[[Trial], None] = lambda _: None,
    executor: str = "processes",
    threads: int | None = None,
) -> None:
    """Run every trial, `jobs` at a time, in their order; call `done` as each one ends.

    A trial that raises, or whose process dies, is an Outcome with an error like any other.
    threads: of torch in each process; None shares this machine's cores out.
    Raises: ConfigError for impossible numbers; KeyboardInterrupt after the running trials have been
    told to stop.
    """
    if jobs < 1 or executor not in EXECUTORS:
        raise ConfigError(
            "--jobs or executor", got=f"{jobs}, {executor!r}",
            want=f"at least 1, one of {tuple(EXECUTORS)}", fix="Leave them out.",
        )  # fmt: skip
    share = threads or max(1, (os.cpu_count() or 1) // jobs)
    waiting: queue.SimpleQueue[Trial] = queue.SimpleQueue()
    for trial in trials:
        waiting.put(trial)
    ended: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()
    slots = [EXECUTORS[executor](share) for _ in range(min(jobs, len(trials)))]

    def serve(slot: Executor) -> None:
        try:
            while not stopped.is_set():
                try:
                    trial = waiting.get_nowait()
                except queue.Empty:
                    break
                begun(trial)
                ended.put(_outcome(slot, work, trial))
        except BaseException as error:
            ended.put(error)
        finally:
            ended.put(None)

    for slot in slots:
        threading.Thread(target=serve, args=(slot,), daemon=True).start()
    left = len(slots)
    try:
        while left:
            found = ended.get()
            if found is None:
                left -= 1
            elif isinstance(found, BaseException):
                raise found
            else:
                done(found)
    finally:
        stopped.set()
        for slot in slots:
            slot.close()


@dataclass
class Pace:
    """How long what is left will take: the mean time of what has ended, by method."""

    trials: Sequence[Trial]
    jobs: int
    seconds: list[float] = field(default_factory=list)

    def left(self) -> float | None:
        """Seconds, or None before anything ended."""
        if not self.seconds:
            return None
        more = len(self.trials) - len(self.seconds)
        return sum(self.seconds) / len(self.seconds) * more / self.jobs


def run_told(
    trials: Sequence[Trial],
    work: Work,
    *,
    jobs: int,
    done: Callable[[Outcome], None],
    said: Callable[[Mapping[str, Any]], str],
    report: Callable[[str], None],
    executor: str = "processes",
    threads: int | None = None,
) -> None:
    """`run_trials`, with a line for each end: which, how it ended, how long the rest will take.

    said: a result in a few words.
    """
    pace = Pace(trials, jobs)
    start = time.monotonic()

    def ended(end: Outcome) -> None:
        done(end)
        pace.seconds.append(end.seconds)
        left = pace.left() or 0.0
        how = f"FAILED, {end.error}" if end.result is None else said(end.result)
        took = "" if end.result is None else f", {end.seconds:.0f} s"
        report(
            f"[{len(pace.seconds)}/{len(trials)}] {end.trial.name}: {how}{took}; "
            f"{(time.monotonic() - start) / 60:.0f} min gone, about {left / 60:.0f} left"
        )

    if trials:
        run_trials(trials, work, jobs=jobs, done=ended, executor=executor, threads=threads)


def _outcome(slot: Executor, work: Work, trial: Trial) -> Outcome:
    start = time.perf_counter()
    result, error = None, ""
    try:
        result = slot.run(work, trial.inputs)
    except Died as death:
        error = str(death)
    except Exception as known:
        error = str(known)
    return Outcome(trial, result, error, time.perf_counter() - start)
