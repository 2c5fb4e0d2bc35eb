"""Load the built kernels, or none: their torch twins then do the work."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...core.checks import one_of
from ...core.errors import ConfigError
from .building import KINDS, BuildFailed, build

ABI = 3  # of common.h
LOG = logging.getLogger(__name__)
INSTRUCTIONS = ("portable C", "AVX2", "AVX-512 with VNNI")
_forced: list[str] = []  # inside `using`


def kind() -> str:
    """Which build is used: "native", "avx2", "portable", or "off".

    `INTARSIA_NATIVE` says so at the start: 0 is off; not set, or 1, is native.
    """
    return _forced[-1] if _forced else _of_environment()


@functools.cache
def _of_environment() -> str:
    said = os.environ.get("INTARSIA_NATIVE", "1").lower()
    if said in ("0", "off", "no", "false"):
        return "off"
    return said if said in KINDS else "native"


@contextmanager
def using(which: str) -> Iterator[None]:
    """Inside, this build is used: "native", "avx2", "portable", or "off"."""
    one_of("kernels", which, (*KINDS, "off"))
    _forced.append(which)
    try:
        yield
    finally:
        _forced.pop()


def load() -> ctypes.CDLL | None:
    """Return the kernels, compiled at first use; None where they are off or cannot be had.

    Why they cannot be had is told once, in one line; `why` tells it again.
    """
    return _loaded(kind())[0]


def why() -> str:
    """Why there are no kernels; nothing if there are."""
    return _loaded(kind())[1]


@functools.cache
def _loaded(which: str) -> tuple[ctypes.CDLL | None, str]:
    if which == "off":
        return None, "INTARSIA_NATIVE=0"
    try:
        library = ctypes.CDLL(str(build(which)))
        found = int(library.intarsia_abi())
        if found != ABI:
            raise BuildFailed(f"kernels of ABI {found}, not {ABI}")
    except (BuildFailed, ConfigError, OSError, AttributeError, TimeoutError) as error:
        told = str(error)
        LOG.warning("no native kernels, sparse products run dense: %s", told)
        return None, told
    return library, ""


def require() -> None:
    """Raises: ConfigError where there are no kernels."""
    if load() is None:
        fix = "Install gcc or clang, or pip install 'intarsia[compiler]'."
        raise ConfigError("kernels", got=why(), want="compiled ones", fix=fix)


def instructions() -> str:
    """What the kernels were compiled for, in words."""
    library = load()
    return "none" if library is None else INSTRUCTIONS[library.intarsia_instructions()]


def function(name: str, *arguments: Any) -> Callable[..., int] | None:
    """Return a kernel by its C name, which returns a number; None where there are no kernels.

    arguments: ctypes types; `ctypes.c_void_p` takes a tensor's data_ptr().
    """
    return _function(kind(), name, arguments)


@functools.cache
def _function(which: str, name: str, arguments: tuple[Any, ...]) -> Callable[..., int] | None:
    library, _ = _loaded(which)
    if library is None:
        return None
    found = getattr(library, name)
    found.argtypes, found.restype = arguments, ctypes.c_int64
    return found
