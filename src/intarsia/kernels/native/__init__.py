"""The kernels written in C: compiled at first use, checked, loaded, registered.

One file for each format, all in one shared library. building.py: compiler, cache. loading.py: the
build and its functions. registering.py: operators of torch. floor.py: this machine's bandwidth and
peak.
"""

from .bound import MANY as MANY
from .bound import Bound as Bound
from .faults import refuse as refuse
from .loading import function as function
from .loading import instructions as instructions
from .loading import kind as kind
from .loading import load as load
from .loading import require as require
from .loading import using as using
from .loading import why as why
from .registering import operator as operator

__all__ = [
    "MANY",
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
