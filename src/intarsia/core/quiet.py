"""Whether progress is told: an environment variable, which the processes of a pool see too."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

QUIET = "INTARSIA_QUIET"


def quiet() -> bool:
    """Return True if progress lines and bars are left out: INTARSIA_QUIET=1, as by --quiet."""
    return os.environ.get(QUIET, "0") not in ("", "0")


@contextmanager
def kept_quiet() -> Generator[None]:
    """Leave out progress lines and bars inside the block, here and in processes that it starts."""
    # the environment is inherited by workers, a variable of this module is not
    before = os.environ.get(QUIET)
    os.environ[QUIET] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(QUIET, None)
        else:
            os.environ[QUIET] = before
