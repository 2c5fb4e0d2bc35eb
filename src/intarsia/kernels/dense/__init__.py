"""x W^T of a whole weight in bfloat16, for a few rows of x: the baseline of sparse products."""

from .native import KINDS as KINDS
from .native import bound as bound
from .native import linear as linear
from .native import runs as runs

__all__ = ["KINDS", "bound", "linear", "runs"]
