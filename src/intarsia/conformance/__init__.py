"""Laws for each kind of method, tried on every card of the catalogue and usable from outside.

for name, check in intarsia.conformance.check(MY_CARD):
    check()                                    # raises ConformanceError
"""

from .kinds import check as check
