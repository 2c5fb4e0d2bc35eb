"""Kill a piece of work at any of its system calls, each time in a process of its own."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable

CALLS = ("os.", "open", "fcntl.")  # audit events of what changes and opens files


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Do something in a process that is killed before its n-th call.  -> is it killed?"""
    child = os.fork()
    if child == 0:
        calls = itertools.count()

        def audit(event: str, _: object) -> None:
            if event.startswith(CALLS) and next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def calls_of(work: Callable[[], object]) -> int:
    """Count the calls of something."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        calls = itertools.count()
        sys.addaudithook(lambda event, _: event.startswith(CALLS) and next(calls) and None)
        work()
        os.write(writer, str(next(calls)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return int(pipe.read())
