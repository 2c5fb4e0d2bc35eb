"""Laws for each kind of method, tried on every card of the catalogue and usable from outside.

for name, check in intarsia.conformance.check(MY_CARD):
    check()                                    # raises ConformanceError
"""

from ..core.renamed import renamed
from .kinds import check as check

_KINDS = ("adapter", "mixture", "model", "router")
__getattr__ = renamed(__name__, {f"check_{kind}": "conformance.check" for kind in _KINDS})
