"""One thread that reads: a queue, and a lock for each read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class PendingRead:
    """Read that is under way, or waits for those before it; `result` waits for it."""

    __slots__ = ("_arguments", "_begun", "_ended", "_error", "_job", "_size")

    def __init__(self, job: Callable[..., int], arguments: tuple[Any, ...]) -> None:
        """Prepare a read that has not begun; job: reads, and returns the number of bytes."""
        self._job, self._arguments = job, arguments
        self._size, self._error = 0, None
        # _begun is locked once the read begins, _ended until it ends: cheaper than an Event
        self._begun, self._ended = threading.Lock(), threading.Lock()
        self._ended.acquire()

    def run(self) -> None:
        """Carry the read out, on the reading thread; do nothing if it was cancelled."""
        if self._begun.acquire(blocking=False):
            try:
                self._size = self._job(*self._arguments)
            except BaseException as error:  # raised where the result is asked for
                self._error = error
        self._arguments = ()
        self._ended.release()

    def cancel(self) -> bool:
        """Cancel the read; return False if it has begun, and runs to its end."""
        return self._begun.acquire(blocking=False)

    def done(self) -> bool:
        """Return True if the read has ended."""
        return not self._ended.locked()

    def exception(self) -> BaseException | None:
        """Wait for the end, and return the error or None."""
        with self._ended:
            return self._error

    def result(self) -> int:
        """Wait for the end of the read, and return its bytes.  Raises: the error of the read."""
        with self._ended:
            if self._error is not None:
                raise self._error
            return self._size


class BlockReader:
    """Reader that carries out reads in the order of their submission, on a thread of its own.

    An executor's futures take 30 us for each; half of that is more than a small expert's product.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[PendingRead | None] = SimpleQueue()
        # a thread that is not joined must not keep a program from ending
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[..., int], *arguments: Any) -> PendingRead:
        """Queue job(*arguments) behind the reads before it; job returns a number of bytes."""
        reading = PendingRead(job, arguments)
        self._jobs.put(reading)
        return reading

    def shutdown(self) -> None:
        """End the thread once all that was submitted has run."""
        self._jobs.put(None)
        self._thread.join()


def _work(jobs: SimpleQueue[PendingRead | None]) -> None:
    """Run the reads of a queue until it ends with None."""
    while (reading := jobs.get()) is not None:
        reading.run()
