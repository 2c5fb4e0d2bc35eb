"""One thread that reads: a queue, and a lock for each read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class PendingRead:
    """A read that is under way, or waits for those before it; `result` waits for it."""

    __slots__ = ("_begun", "_ended", "_error", "_given", "_job", "_size")

    def __init__(self, job: Callable[..., int], given: tuple[Any, ...]) -> None:
        self._job, self._given = job, given
        self._size, self._error = 0, None
        self._begun, self._ended = threading.Lock(), threading.Lock()
        self._ended.acquire()

    def run(self) -> None:
        """In the thread; of a read that was cancelled, nothing."""
        if self._begun.acquire(blocking=False):
            try:
                self._size = self._job(*self._given)
            except BaseException as error:  # raised where the result is asked for
                self._error = error
        self._given = ()
        self._ended.release()

    def cancel(self) -> bool:
        """Whether it had not begun, and will not."""
        return self._begun.acquire(blocking=False)

    def done(self) -> bool:
        """Whether it has ended."""
        return not self._ended.locked()

    def exception(self) -> BaseException | None:
        """Its error, once it has ended."""
        with self._ended:
            return self._error

    def result(self) -> int:
        """The bytes that were read.  Raises: what the read raised."""
        with self._ended:
            if self._error is not None:
                raise self._error
            return self._size


class BlockReader:
    """Reads in the order in which they are submitted, in a thread of its own.

    An executor's futures take 30 us for each; half of that is more than a small expert's product.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[PendingRead | None] = SimpleQueue()
        # a thread that is not joined must not keep a program from ending
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[..., int], *given: Any) -> PendingRead:
        """Have job(*given) run after those before it."""
        reading = PendingRead(job, given)
        self._jobs.put(reading)
        return reading

    def shutdown(self) -> None:
        """End the thread once all that was submitted has run."""
        self._jobs.put(None)
        self._thread.join()


def _work(jobs: SimpleQueue[PendingRead | None]) -> None:
    while (reading := jobs.get()) is not None:
        reading.run()
