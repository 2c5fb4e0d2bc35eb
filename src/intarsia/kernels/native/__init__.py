"""The kernels written in C: compiled at first use, checked, loaded, registered.

One file for each format, all in one shared library. building.py: compiler, cache. loading.py: the
build and its functions. registering.py: operators of torch. floor.py: this machine's bandwidth and
peak. What needs torch is imported when it is first used: a search of an index does without.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .faults import NO_MEMORY as NO_MEMORY
from .faults import refuse as refuse
from .loading import function as function
from .loading import instructions as instructions
from .loading import kind as kind
from .loading import load as load
from .loading import require as require
from .loading import using as using
from .loading import why as why

if TYPE_CHECKING:
    from .bound import MANY as MANY
    from .bound import Bound as Bound
    from .registering import operator as operator

__all__ = [
    "MANY",
    "NO_MEMORY",
    "Bound",
    "function",
    "instructions",
    "kind",
    "load",
    "operator",
    "refuse",
    "require",
    "using",
    "why",
]
_HOMES = {"MANY": "bound", "Bound": "bound", "operator": "registering"}


def __getattr__(name: str) -> Any:
    """Import a name of a module that needs torch, and keep it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = vars(importlib.import_module(f".{_HOMES[name]}", __name__))[name]
    return value
