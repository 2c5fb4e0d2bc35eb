"""x W^T of kept weights and the column of each: the naive definition, and the kernel in C."""

from .naive import columns_linear as naive_columns_linear
from .native import bound as bound
from .native import linear as linear
from .native import runs as runs

__all__ = ["bound", "linear", "naive_columns_linear", "runs"]
