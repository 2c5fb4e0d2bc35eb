"""x W^T of kept weights and a bit for each weight: the naive definition, and the kernel in C."""

from .naive import bitmask_linear as naive_bitmask_linear
from .native import bound as bound
from .native import decode as decode
from .native import linear as linear
from .native import linear_many as linear_many
from .native import runs as runs

__all__ = ["bound", "decode", "linear", "linear_many", "naive_bitmask_linear", "runs"]
