"""Load the built kernels, or none: their definitions in torch then do the work."""

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

ABI = 8  # of common.h
LOG = logging.getLogger(__name__)
INSTRUCTIONS = ("portable C", "AVX2", "AVX-512 with VNNI")
_forced: list[str] = []  # inside `using`


def kind() -> str:
    """Return the build that is used: "native", "avx2", "portable", or "off".

    The environment variable INTARSIA_NATIVE selects it: 0 is off; not set, or 1, is native. Inside
    the `with` block of `using` it is that block's.
    """
    return _forced[-1] if _forced else _of_environment()


@functools.cache
def _of_environment() -> str:
    """Return the build that the variable INTARSIA_NATIVE selects: 0 is "off", unset "native"."""
    setting = os.environ.get("INTARSIA_NATIVE", "1").lower()
    if setting in ("0", "off", "no", "false"):
        return "off"
    return setting if setting in KINDS else "native"


@contextmanager
def using(which: str) -> Iterator[None]:
    """Use another build of the kernels, one that `kind` lists, inside the `with` block."""
    one_of("kernels", which, (*KINDS, "off"))
    _forced.append(which)
    try:
        yield
    finally:
        _forced.pop()


def load() -> ctypes.CDLL | None:
    """Return the kernels, compiled at first use; None where they are off or cannot be had.

    The reason is logged once, in one line; `why` returns it.
    """
    return _loaded(kind())[0]


def why() -> str:
    """Return the reason why there are no kernels; an empty text if there are."""
    return _loaded(kind())[1]


@functools.cache
def _loaded(which: str) -> tuple[ctypes.CDLL | None, str]:
    """Load the library of a build; return it and "", or None and the reason."""
    if which == "off":
        return None, "INTARSIA_NATIVE=0"
    try:
        library = ctypes.CDLL(str(build(which)))
        abi = int(library.intarsia_abi())
        # a library of other sources would be called with other arguments
        if abi != ABI:
            raise BuildFailed(f"kernels of ABI {abi}, not {ABI}")
    except (BuildFailed, ConfigError, OSError, AttributeError, TimeoutError) as error:
        reason = str(error)
        LOG.warning("no native kernels, sparse products run dense: %s", reason)
        return None, reason
    return library, ""


def require() -> None:
    """Raise ConfigError where there are no kernels."""
    if load() is None:
        fix = "Install gcc or clang, or pip install 'intarsia[compiler]'."
        raise ConfigError("kernels", got=why(), want="compiled ones", fix=fix)


def instructions() -> str:
    """Name the instruction set that the kernels were compiled for."""
    library = load()
    return "none" if library is None else INSTRUCTIONS[library.intarsia_instructions()]


def function(name: str, *arguments: Any) -> Callable[..., int] | None:
    """Return a kernel by its C name, as a function that returns an integer; None without kernels.

    arguments: ctypes types; `ctypes.c_void_p` takes a tensor's data_ptr().
    """
    return _function(kind(), name, arguments)


@functools.cache
def _function(which: str, name: str, arguments: tuple[Any, ...]) -> Callable[..., int] | None:
    """Return the C function `name` of a build, cached; None without kernels."""
    library, _ = _loaded(which)
    if library is None:
        return None
    kernel = getattr(library, name)
    kernel.argtypes, kernel.restype = arguments, ctypes.c_int64
    return kernel
