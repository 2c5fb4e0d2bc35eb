"""The command line: each verb is one call of the library."""

from ..core.interrupts import never_lost

with never_lost():
    from .app import app as app
    from .app import main as main
