"""Executors of trials: this process, or one of its own that takes one after another."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import IntarsiaError

Work = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Inputs -> result, both JSON-ready; importable by name, and run in a process of its own."""


class Executor(Protocol):
    """Runs one piece of work at a time; `slots` of them stand side by side."""

    def run(self, work: Work, inputs: Mapping[str, Any]) -> dict[str, Any]: ...

    def close(self) -> None: ...


class Died(Exception):
    """A process that ended before its work did."""


class Here:
    """This very process: for a debugger, and for work that is shorter than a process's start."""

    def __init__(self, threads: int) -> None:
        pass

    def run(self, work: Work, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run work(inputs) in this process; return its result.

        Raises: the work's own error, in a form that other executors raise, too.
        """
        try:
            return work(inputs)
        except Exception as error:
            raise sendable(error) from error

    def close(self) -> None:
        pass


class OwnProcess:
    """A process that takes one trial after another, so that they share its data in memory.

    It ends with the process that made it, however that ends.  threads: number of torch threads in
    it.
    """

    def __init__(self, threads: int) -> None:
        """Prepare a process, which starts at the first run.  threads: torch's in it."""
        self.threads = threads
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(self, work: Work, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run one trial's work in the process of this executor, started at the first call.

        work: a function that can be imported by name. Returns its result.
        Raises: Died if the process ends before its work does; the work's own error.
        """
        if self._pipe is None:
            context = self._context(work)
            self._pipe, theirs = context.Pipe()
            arguments = (theirs, self.threads, dict(os.environ))
            process: Any = context.Process(target=_serve, args=arguments)  # pyright: ignore
            process.start()
            self._process = process
            # the child has its own copy; with this one open, its end would not be noticed
            theirs.close()
        try:
            self._pipe.send((work, dict(inputs)))
            right, result = self._pipe.recv()
        except (EOFError, OSError) as error:
            # the pipe broke: the process is gone, and its exit code tells why
            code = self._ended()
            raise Died(
                f"its process ended with exit code {code}"
                + (", killed: most often memory ran out; try fewer --jobs" if code == -9 else "")
            ) from error
        if right:
            return result
        raise result

    def _context(self, work: Work) -> BaseContext:
        """Return the way to start a process: spawn, since a fork of one with threads can hang."""
        return multiprocessing.get_context("spawn")

    def _ended(self) -> int | None:
        """Forget the process and return its exit code; None if it is still running."""
        process, self._process, self._pipe = self._process, None, None
        if process is None:
            return None
        process.join(10)
        return process.exitcode

    def close(self) -> None:
        """Stop the process: at once if it is idle; else as Ctrl-C does, then by force."""
        process, pipe = self._process, self._pipe
        if process is None or pipe is None:
            return
        self._process = self._pipe = None
        pipe.close()  # an idle one sees the end of its work
        process.join(5)
        # it is at work: ask it to stop as Ctrl-C does, and wait for it to save
        if process.is_alive() and process.pid:
            os.kill(process.pid, signal.SIGINT)
            process.join(30)
        if process.is_alive():
            process.kill()
            process.join()


class FreshProcess(OwnProcess):
    """A process of its own for each trial, so that no memory of one is in the peak of the next.

    On Linux each is forked from a server without threads that has imported the work's module: PEFT
    and timm, six seconds of a core, are imported once and not for each trial.
    """

    def _context(self, work: Work) -> BaseContext:
        """Return how processes start: on Linux forked by a server that has imported the work."""
        # elsewhere each process imports the work on its own
        if sys.platform != "linux":
            return super()._context(work)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([work.__module__])
        return context

    def run(self, work: Work, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run one trial's work in a new process, which ends with it; return its result."""
        try:
            return super().run(work, inputs)
        finally:
            self.close()


def _serve(pipe: Connection, threads: int, environment: Mapping[str, str]) -> None:
    """Do the work that comes through a pipe until it closes: the main loop of a worker."""
    os.environ.clear()
    os.environ.update(environment)
    parent = multiprocessing.parent_process()

    # a thread waits for the parent's end, since a busy worker would not notice it
    def follow() -> None:
        """Wait for the parent process to end, then end this one."""
        assert parent is not None
        wait([parent.sentinel])
        os._exit(1)  # a trial half done resumes when the runner is started again

    threading.Thread(target=follow, daemon=True).start()
    begin(threads)
    while True:
        try:
            # (work, inputs) come, (True, result) or (False, error) goes back
            work, inputs = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            answer = True, work(inputs)
        except BaseException as error:
            # any error at all, Ctrl-C too, is an answer: the parent decides
            answer = False, sendable(error)
        with contextlib.suppress(OSError):  # nobody listens any more
            pipe.send(answer)


def sendable(error: BaseException) -> BaseException:
    """Return the error, or its text as a RuntimeError where it cannot be sent to a process."""
    if isinstance(error, IntarsiaError | KeyboardInterrupt):
        return error
    # the line where it was raised tells more than the class of an error that cannot travel
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return RuntimeError(f"{type(error).__name__}: {error} ({place})")


def begin(threads: int) -> None:
    """Set torch's number of threads in a new worker process."""
    import torch

    torch.set_num_threads(threads)
