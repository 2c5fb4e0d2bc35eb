"""Ctrl-C and SIGTERM as a request to stop after the step, not in the middle of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..core import interrupts

SOON = 1.0  # seconds that a step may take before it is said that it comes to its end
STOPPING = b"\nStopping after this step. Ctrl-C again stops at once.\n"


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop and did; its message says how to continue."""


class StopRequest:
    """Set by the first signal; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM inside the context into a request to stop after the step.

    Works in the main thread only. If the step takes longer than a second to end, a line on stderr
    says that the run is stopping.
    Raises: KeyboardInterrupt if one arrived before and was not handled, see `core.interrupts`.
    """
    interrupts.check()
    request = StopRequest()
    # os.write goes past Python's buffered stderr: the interrupted step may hold its lock
    notice = threading.Timer(SOON, os.write, (2, STOPPING))
    # Python sets handlers in the main thread only
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: FrameType | None) -> None:
        """Note the first signal; raise KeyboardInterrupt on the second one."""
        if request:
            raise KeyboardInterrupt
        request.signal = number
        notice.start()

    try:
        for number in before:
            signal.signal(number, note)
        yield request
    finally:
        notice.cancel()
        if request:
            notice.join()
        for number, handler in before.items():
            signal.signal(number, handler)
