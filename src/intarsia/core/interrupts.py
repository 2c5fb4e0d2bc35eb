"""Ctrl-C while a program starts: noted, and raised again where an import has swallowed it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

EXIT = 128 + signal.SIGINT  # as shells have it
_came: list[int] = []


def check() -> None:
    """Raise the KeyboardInterrupt that came inside `never_lost` if the program still runs."""
    if _came:
        raise KeyboardInterrupt


@contextmanager
def never_lost() -> Generator[None, None, None]:
    """End the program on Ctrl-C inside the block, even where an imported module catches it.

    Modules of other packages may catch the KeyboardInterrupt, or an error that it became, and
    continue; the next import then raises it again. The program ends with one line and its exit
    code. Outside the main thread, and where the shell or the program has another handler, nothing
    changes.
    """
    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or before is not signal.default_int_handler:
        yield
        return
    # noted as well as raised: an import may swallow the exception
    signal.signal(signal.SIGINT, _note)
    looking = _AtImports()
    # the next import asks this finder first
    sys.meta_path.insert(0, looking)
    try:
        yield
        check()
    except (KeyboardInterrupt, Exception):
        if not _came:
            raise
        sys.stderr.write("Stopped.\n")
        raise SystemExit(EXIT) from None
    finally:
        sys.meta_path.remove(looking)
        signal.signal(signal.SIGINT, before)
        _came.clear()


def _note(number: int, _frame: FrameType | None) -> None:
    """Handle a signal: remember its number, and stop as Ctrl-C does."""
    _came.append(number)
    raise KeyboardInterrupt


class _AtImports:
    """A finder that finds nothing, and looks whether Ctrl-C came and is on its way no more."""

    def find_spec(self, *_: object) -> None:
        """Raise the KeyboardInterrupt that came, unless it is on its way; find no module."""
        on_its_way = isinstance(sys.exception(), KeyboardInterrupt)
        if not on_its_way and threading.current_thread() is threading.main_thread():
            check()
