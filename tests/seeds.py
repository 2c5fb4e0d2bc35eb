"""Other seeds for whatever the tests draw: `INTARSIA_TEST_SEED=1 pytest` shifts all of them by 1.

Only what a file below `tests/` seeds is shifted: a seed that the library sets belongs to what is
tested, and another process would set it without this shift.
"""

from __future__ import annotations

import functools
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

TESTS = str(Path(__file__).parent)
SHIFT = int(os.environ.get("INTARSIA_TEST_SEED", "0"))


def shifted(seed: Any, depth: int = 2) -> Any:
    """Shift a seed if the function that many calls above is a test's; leave all else as it is.

    depth: 1 is the caller of this function.
    """
    ours = sys._getframe(depth).f_code.co_filename.startswith(TESTS)
    return seed + SHIFT if ours and isinstance(seed, int) else seed


class Generator(torch.Generator):
    """A generator of torch whose seed is shifted when a test sets it."""

    def manual_seed(self, seed: int) -> torch.Generator:
        return super().manual_seed(shifted(seed))


class Random(random.Random):
    """Python's generator; its seed is shifted when a test sets it."""

    def __init__(self, x: Any = None) -> None:
        super().__init__(shifted(x))


def _with_shift(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(seed: Any = None, *rest: Any) -> Any:
        return function(shifted(seed), *rest)

    return call


def shift() -> None:
    """Shift the seeds of torch, numpy and Python from now on."""
    torch.manual_seed = _with_shift(torch.manual_seed)
    np.random.default_rng = _with_shift(np.random.default_rng)
    torch.Generator, random.Random = Generator, Random
