"""The command line: each verb is one call of the library."""

from .app import app as app
from .app import main as main
