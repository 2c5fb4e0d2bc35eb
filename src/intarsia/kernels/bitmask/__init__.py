"""x W^T of kept weights and a bit for each weight: the twin, and the kernel in C."""

from .naive import bitmask_linear as naive_bitmask_linear
from .native import decode as decode
from .native import linear as linear
from .native import runs as runs

__all__ = ["decode", "linear", "naive_bitmask_linear", "runs"]
