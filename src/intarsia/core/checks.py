"""Small checks of settings, so that every error says got, want and fix in the same words."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Iterable
from numbers import Integral

from .errors import ConfigError


def one_of(subject: str, got: object, allowed: Collection[object], fix: str = "Pick one.") -> None:
    """Check that `got` is one of those allowed.  Raises: ConfigError."""
    if got not in allowed:
        raise ConfigError(subject, got=repr(got), want=f"one of {tuple(allowed)}", fix=fix)


def _holds(test: Callable[[], bool]) -> bool:
    """Return the result of a comparison; False where the value is no number, so that it fails."""
    try:
        return test()
    except TypeError:
        return False


def _quoted(got: object) -> object:
    return repr(got) if isinstance(got, str) else got


def whole(subject: str, got: object, least: float = -math.inf, fix: str = "") -> None:
    """Check that `got` is a whole number, and got >= least.  Raises: ConfigError."""
    # NumPy's integers count, 2.0 does not
    if not isinstance(got, Integral):
        fix = fix or f"Try {max(1, least)}."
        raise ConfigError(subject, got=_quoted(got), want="a whole number", fix=fix)
    at_least(subject, int(got), least, fix)


def at_least(subject: str, got: float, least: float, fix: str = "") -> None:
    """Check that got >= least, which NaN and other types are not.  Raises: ConfigError."""
    # the comparison is positive, so that NaN fails it
    if not _holds(lambda: got >= least):
        want, fix = f"at least {least}", fix or f"Try {least}."
        raise ConfigError(subject, got=_quoted(got), want=want, fix=fix)


def above(subject: str, got: float, bound: float, fix: str = "Try 0.1.") -> None:
    """Check that got > bound, NaN and infinity refused, too.  Raises: ConfigError."""
    if not _holds(lambda: bound < got < math.inf):
        raise ConfigError(subject, got=_quoted(got), want=f"above {bound}", fix=fix)


def between(subject: str, got: float, low: float, high: float, fix: str = "") -> None:
    """Check that low <= got <= high, which NaN is not.  Raises: ConfigError."""
    if not _holds(lambda: low <= got <= high):
        want, fix = f"{low} ... {high}", fix or f"Try {low}."
        raise ConfigError(subject, got=_quoted(got), want=want, fix=fix)


def below_one(subject: str, got: float, fix: str = "Try 0.1.") -> None:
    """Check that 0 <= got < 1, which NaN is not.  Raises: ConfigError."""
    if not _holds(lambda: 0 <= got < 1):
        raise ConfigError(subject, got=_quoted(got), want=f"0 <= {subject} < 1", fix=fix)


RATE_REACH = (1e-6, 1.0)
"""The lowest and the highest learning rate that a search tries."""


def rate_grid(subject: str, rates: Iterable[float]) -> tuple[float, ...]:
    """Return the learning rates of a search in ascending order.

    Raises: ConfigError for fewer than two, one that is there twice, or one outside RATE_REACH.
    """
    grid, (low, high) = tuple(sorted(rates)), RATE_REACH
    if len(set(grid)) < max(2, len(grid)) or not all(low <= rate <= high for rate in grid):
        got = ", ".join(f"{rate:g}" for rate in grid) or "none"
        want = f"two or more different rates, each from {low:g} to {high:g}"
        fix = "For example 1e-3,3e-3,1e-2; --lr takes a single rate for all methods."
        raise ConfigError(subject, got=got, want=want, fix=fix)
    return grid


DEVICES = ("cpu", "cuda", "mps")
AUGMENTS = ("none", "light", "crop")


def check_device(name: str) -> None:
    """Check that it is a name of a device, which need not be there.  Raises: ConfigError."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ConfigError("device", got=repr(name), want="cpu, cuda, cuda:1 or mps", fix="Try cpu.")


BALANCED = "balanced"  # class weights by how often a class occurs


def named_numbers(subject: str, text: str) -> dict[str, float]:
    """Parse "a=1,b=2.5" as numbers by name.  Raises: ConfigError for anything else."""
    numbers: dict[str, float] = {}
    for part in text.split(","):
        # the last "=": a name of a class may have one
        name, equals, value = (word.strip() for word in part.rpartition("="))
        try:
            number = float(value) if equals and name and name not in numbers else math.nan
        except ValueError:
            number = math.nan
        if math.isnan(number):
            want = f"{BALANCED}, or a number for each name, once: a=1,b=2"
            raise ConfigError(subject, got=repr(text), want=want, fix=f"For example: {BALANCED}")
        numbers[name] = number
    return numbers


UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_of(text: str) -> float | None:
    """Return how many bytes a size such as "8GB" or "512 MiB" is; None for any other text."""
    size = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMG]i?B)\s*", text, re.IGNORECASE)
    return None if size is None else float(size[1]) * UNITS[size[2].upper()]


def n_of_m(text: str) -> tuple[int, int]:
    """Parse a pattern "n:m", such as "2:4".  Raises: ConfigError for another text."""
    n, _, m = str(text).partition(":")
    if not (n.isdigit() and m.isdigit() and 1 <= int(n) <= int(m)):
        want, fix = "'n:m', n of each m weights", "Write it as '2:4'."
        raise ConfigError("pattern", got=repr(text), want=want, fix=fix)
    return int(n), int(m)


def from_environment(name: str, default: int, want: str) -> int:
    """Read a whole number >= 1 from a variable, else `default`.  Raises: ConfigError."""
    # 18 digits: longer numbers are no counts, and int() would be slow
    text = os.environ.get(name, "")
    if text and not (text.isascii() and text.isdecimal() and int(text[:18]) > 0):
        fix = f"For example {default}; unset it for that."
        raise ConfigError(name, got=repr(text), want=want, fix=fix)
    return int(text[:18]) if text else default
