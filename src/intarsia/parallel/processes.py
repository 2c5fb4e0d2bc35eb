"""Processes on this machine that work together: started once, given one job after another."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from ..core.checks import at_least
from ..core.errors import IntarsiaError, TrainingError

# imported once, in the server that the processes come from; more may be added before the first
PRELOAD = ["intarsia.parallel.trial"]
STRAGGLERS = 5.0  # seconds that others have after one has failed


class Processes:
    """`count` gloo processes on this machine's CPU, for experiments and tests without a cluster.

    seconds: that a job, with the start before the first one, may take, and an exchange may wait:
    a busy machine needs minutes for both.  Use it in a `with`, or call `close`.
    Nothing here starts a run on several machines: torchrun does.
    """

    def __init__(self, count: int, seconds: float = 600.0) -> None:
        at_least("count", count, 1)
        self.count, self.seconds = count, seconds
        self._started: list[tuple[Any, Connection]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run(self, job: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call job(*arguments) in every process and return the results by rank.

        job: a function at the top of a module; it learns its rank from torch.distributed;
          arguments: they, and the results, are pickled and sent through a pipe.
        Raises: the first error of a process: one of this library as it is, any other as a
          TrainingError; TrainingError also if the job does not end in time. All processes are then
          ended.
        """
        if not self._started:
            self._start()
        for _, pipe in self._started:
            pipe.send((job, arguments))
        answers: dict[int, Any] = {}
        end = time.monotonic() + self.seconds
        while len(answers) < self.count:
            open_ = {pipe: r for r, (_, pipe) in enumerate(self._started) if r not in answers}
            # Answers are read as they come: a failed process is seen at once, even if the others
            # wait for it in an exchange.
            ready = wait(list(open_), max(0.0, end - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                rank = open_[pipe]  # pyright: ignore[reportArgumentType]
                try:
                    answers[rank] = pipe.recv()  # pyright: ignore
                except EOFError:
                    # A closed pipe without an answer: the process was killed or has crashed.
                    answers[rank] = "failed", _failure(f"process {rank}", "it ended")
                # The others fail soon, too, but may hang in an exchange until its time is over:
                # they are waited for only briefly.
                if answers[rank][0] == "failed":
                    end = min(end, time.monotonic() + STRAGGLERS)
        failed = [answer for kind, answer in answers.values() if kind == "failed"]
        if len(answers) < self.count and not failed:
            missing = sorted(set(range(self.count)) - answers.keys())
            failed = [_failure(f"processes {missing}", f"no answer in {self.seconds:g} s")]
        if failed:
            self.close()
            # those that lost a peer say less than the one that failed first
            raise next((e for e in failed if "a process that is gone" not in str(e)), failed[0])
        return [answers[rank][1] for rank in range(self.count)]

    def _start(self) -> None:
        """Start the processes, each with a pipe for jobs and answers."""
        # A fork server imports torch once, before it is asked for processes: they start fast.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._folder = tempfile.TemporaryDirectory()
        store = Path(self._folder.name) / "store"
        for rank in range(self.count):
            ours, theirs = context.Pipe()
            arguments = rank, self.count, str(store), self.seconds, theirs
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._started.append((process, ours))

    def close(self) -> None:
        """End the processes."""
        for process, pipe in self._started:
            pipe.close()
            # a process ends on its own when its pipe is closed
            process.join(0.2)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._started = []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _failure(subject: str, got: str) -> TrainingError:
    fix = "See its messages above; try fewer processes."
    return TrainingError(subject, got=got, want="the job done", fix=fix)


def _serve(rank: int, count: int, store: str, seconds: float, pipe: Connection) -> None:
    """Carry out jobs from a pipe until it is closed; runs in a process of its own."""
    # As many threads as cores in each of the processes would slow all of them down.
    torch.set_num_threads(1)
    limit = timedelta(seconds=seconds)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=limit
    )
    try:
        while True:
            try:
                job, arguments = pipe.recv()
            except (EOFError, OSError):
                break
            try:
                answer = "done", job(*arguments)
            except IntarsiaError as error:
                answer = "failed", error
            except Exception as error:
                text = "".join(traceback.format_exception(error))
                answer = "failed", _failure(f"process {rank}", text)
            # What a job printed must be out before its answer, or it may be lost when the process
            # is ended.
            sys.stdout.flush()
            pipe.send(answer)
            # Tensors of a finished job must not stay in memory while the process waits for the
            # next.
            del job, arguments, answer
    finally:
        dist.destroy_process_group()
