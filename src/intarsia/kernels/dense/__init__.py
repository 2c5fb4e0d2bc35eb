"""x W^T of a whole weight in bfloat16, for a few rows of x: the baseline of sparse products."""

from .native import KINDS as KINDS
from .native import bound as bound
from .native import grouped as grouped
from .native import linear as linear
from .native import runs as runs
from .native import runs_grouped as runs_grouped

__all__ = ["KINDS", "bound", "grouped", "linear", "runs", "runs_grouped"]
